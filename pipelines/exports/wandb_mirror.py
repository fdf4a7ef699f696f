"""Mirror to Weights & Biases: one run for each attempt of a stage that ended, grouped by its pipeline run.

A run is written when it has ended, in one go, under the ledger's id: a repeated event resumes it online, and is the
same run again for `wandb sync` offline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.storage import storage_faults
from pipelines.exports.config import WandbSink
from pipelines.exports.mirror import Link, Point, RunUpdate, updates
from pipelines.ledger import EventRow, Ledger, Status

EXTRA = "pip install 'm4v-pipeline[wandb]'"
TIMEOUT_S = 15  # of reaching the server
_KEY = "WANDB_API_KEY"
SHORT = 12


class WandbMirror:
    """Pipeline runs and attempts that end; events that only tag a run wait for no counterpart here."""

    def __init__(self, config: WandbSink, ledger: Ledger, home: Path) -> None:
        self._config, self._ledger = config, ledger
        self._directory = home / config.directory
        if config.mode == "online" and not os.environ.get(_KEY):
            raise ConfigError(
                "an environment variable that a sink needs is not set", value=_KEY, where=f"sink {config.name}",
                next_step="set it, or take mode: offline",
            )  # fmt: skip
        self._wandb = _library()
        with storage_faults(str(self._directory)):
            self._directory.mkdir(parents=True, exist_ok=True)

    def send(self, event: EventRow) -> None:
        for update in updates(self._ledger, event):
            if update.status is not None:
                self._write(update, update.status)

    def flush(self) -> None:
        """Nothing to do: a run is finished, and with it written, before `send` returns."""

    def close(self) -> None:
        """Nothing is kept open between runs."""

    def _write(self, update: RunUpdate, status: Status) -> None:
        try:
            run = self._wandb.init(**self._arguments(update))
            _log(run, update.points)
            for link in update.links:
                if link.role == "output":
                    run.log_artifact(self._artifact(link))
            run.summary.update({"status": str(status), **_plain(update.tags)})
            run.finish(exit_code=0 if status is Status.SUCCEEDED else 1)
        except (self._wandb.errors.AuthenticationError, self._wandb.errors.UsageError) as error:
            raise ConfigError(
                f"Weights & Biases refuses: {_text(error)}", where=f"sink {self._config.name}",
                next_step="correct the sink's settings or WANDB_API_KEY",
            ) from error  # fmt: skip
        except (self._wandb.Error, OSError) as error:
            raise InfrastructureError(
                f"Weights & Biases cannot be reached: {_text(error)}", where=f"sink {self._config.name}",
                next_step="m4v ledger deliver, when it is back",
            ) from error  # fmt: skip

    def _arguments(self, update: RunUpdate) -> dict[str, Any]:
        settings = self._wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_stats=True,
            x_disable_meta=True, x_disable_machine_info=True, init_timeout=TIMEOUT_S,
        )  # fmt: skip
        return {
            "id": update.identity,
            "resume": "allow" if self._config.mode == "online" else None,
            "reinit": "create_new",  # a run of the user's own in this process stays as it is
            "project": self._config.project,
            "entity": self._config.entity,
            "mode": self._config.mode,
            "dir": str(self._directory),
            "name": update.name,
            "group": update.parent or update.identity,
            "job_type": update.kind,
            "config": dict(update.params),
            "settings": settings,
        }

    def _artifact(self, link: Link) -> Any:
        """A link to the artifact where it lies; its bytes are neither read nor copied. A local path, which may be gone
        and means nothing elsewhere, stands in the facts only."""
        facts = {"artifact_id": link.artifact_id, "size_bytes": link.size_bytes, "uri": link.uri}
        artifact = self._wandb.Artifact(f"{link.kind}-{link.artifact_id[:SHORT]}", type=link.kind, metadata=facts)
        if "://" in link.uri:
            artifact.add_reference(link.uri, name="artifact", checksum=False)
        return artifact


def _log(run: Any, points: tuple[Point, ...]) -> None:
    """Curves step by step; values without steps are the run's summary."""
    steps: dict[int, dict[str, float]] = {}
    for point in points:
        if point.name.startswith("train/"):
            steps.setdefault(point.step, {})[point.name] = point.value
        else:
            run.summary[point.name] = point.value
    for step in sorted(steps):
        run.log(steps[step], step=step)


def _plain(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if value}


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _library() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
        import wandb.errors
    except ModuleNotFoundError as error:
        raise ConfigError("the Weights & Biases client is not installed", value=error.name, next_step=EXTRA) from None
    return wandb
