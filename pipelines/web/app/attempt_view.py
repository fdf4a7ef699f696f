"""What the page of an attempt shows besides its log: what it was asked to do, and its fellows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m4v.core.errors import ExitClass
from pipelines.launchers.base import REQUEST
from pipelines.ledger import AttemptRow, Ledger, RunRow
from pipelines.workspace import Workspace

# What an exit class asks for, in words (DESIGN, Exit classes).
EXIT_WORDS = {
    ExitClass.OK: "ok", ExitClass.BUG: "bug: see the log", ExitClass.USAGE: "wrong usage",
    ExitClass.CONFIG: "config error: never retried", ExitClass.DATA_INTEGRITY: "data integrity: never retried",
    ExitClass.INFRASTRUCTURE: "infrastructure: retried", ExitClass.DRAINED: "drained: state saved, resumes",
    ExitClass.NEEDS_HUMAN: "needs a human", ExitClass.GATE_REFUSED: "gate refused",
}  # fmt: skip


def exit_words(exit_class: int | None) -> str:
    """An exit class as people are told it: its number and what it means."""
    if exit_class is None:
        return "–"
    words = next((text for known, text in EXIT_WORDS.items() if known == exit_class), EXIT_WORDS[ExitClass.BUG])
    return f"{exit_class} {words}"


@dataclass(frozen=True)
class AttemptView:
    """`run` is what it made, if it has; `request` what it was given, while its folder is there."""

    row: AttemptRow
    run: RunRow | None
    request: dict[str, Any] | None
    fellows: tuple[AttemptRow, ...]

    @property
    def config_yaml(self) -> str:
        config = self.run.config if self.run else (self.request or {}).get("config")
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""

    @property
    def inputs(self) -> list[tuple[str, str, str]]:
        """Name, kind and id of each."""
        if self.run is not None:
            return [(p.name, str(p.kind), p.artifact_id) for p in self.run.inputs]
        found = (self.request or {}).get("inputs", [])
        return [(str(i.get("name")), str(i.get("kind")), str(i.get("artifact_id"))) for i in found]

    @property
    def outputs(self) -> list[tuple[str, str, str]]:
        return [(p.name, str(p.kind), p.artifact_id) for p in self.run.outputs] if self.run else []

    @property
    def is_known(self) -> bool:
        return self.run is not None or self.request is not None


def attempt_view(ledger: Ledger, workspace: Workspace, row: AttemptRow) -> AttemptView:
    """Raises nothing for an attempt whose folder is gone: the page says so."""
    run = ledger.run(row.run_id) if row.run_id else None
    fellows = ledger.attempts(stage_key=row.stage_key, limit=None)
    return AttemptView(row, run, _request(workspace, row) if run is None else None, tuple(reversed(fellows)))


def _request(workspace: Workspace, row: AttemptRow) -> dict[str, Any] | None:
    recorded = str(Path(row.work_dir) / REQUEST)
    path = workspace.attempt_file(recorded, row.stage_key, row.attempt_id).resolve()
    if not path.is_relative_to(workspace.home.resolve()):  # of another machine, or one that somebody made up
        return None
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):  # pruned by retention, or being written
        return None
    return found if isinstance(found, dict) else None
