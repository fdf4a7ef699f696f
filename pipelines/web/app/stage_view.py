"""What the page of a stage run shows: its identity, its code and environment, its curves, videos and attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import M4VError
from pipelines.ledger import ArtifactRow, AttemptRow, EventRow, Ledger, NodeRow, RunRow
from pipelines.provenance import CodeState
from pipelines.web.app.artifact_media import Curves, Gallery, curves, gallery

_EVENTS = 50
# Parts of the environment with a place of their own on the page.
_CODE, _REQUEST = "code", "request"
_QUIET_EVENTS = {"run.committed", "run.verified"}  # told elsewhere on the page


@dataclass(frozen=True)
class PortLine:
    """An input or output and its artifact."""

    name: str
    artifact: ArtifactRow


@dataclass(frozen=True)
class Shown:
    """What an output can show."""

    port: PortLine
    curves: Curves | None
    gallery: Gallery | None
    problem: str = ""


@dataclass(frozen=True)
class StageView:
    run: RunRow
    inputs: tuple[PortLine, ...]
    outputs: tuple[PortLine, ...]
    shown: tuple[Shown, ...]
    attempts: tuple[AttemptRow, ...]
    uses: tuple[NodeRow, ...]
    events: tuple[EventRow, ...]
    before: str | None

    @property
    def attempt(self) -> AttemptRow | None:
        """The attempt that made the outputs."""
        return next((a for a in self.attempts if a.attempt_id == self.run.attempt_id), None)

    @property
    def node_id(self) -> str:
        return self.attempt.node_id or self.run.stage if self.attempt else self.run.stage

    @property
    def code(self) -> dict[str, Any]:
        """Commit, branch, uncommitted changes, as recorded at launch; empty for runs before that was recorded."""
        found = self.run.environment.get(_CODE)
        return {**CodeState().model_dump(), **found} if isinstance(found, dict) else {}

    @property
    def diff(self) -> str | None:
        """Digest of the uncommitted changes, when they were kept."""
        found = self.code.get("diff")
        return str(found["sha256"]) if isinstance(found, dict) and found.get("kept") else None

    @property
    def environment(self) -> list[tuple[str, str]]:
        return flat({k: v for k, v in self.run.environment.items() if k not in (_CODE, _REQUEST)})

    @property
    def request(self) -> list[tuple[str, str]]:
        """How the stage was launched, but for its config."""
        found = self.run.environment.get(_REQUEST)
        return flat({k: v for k, v in found.items() if k != "config"}) if isinstance(found, dict) else []

    @property
    def code_files(self) -> dict[str, str]:
        """Digest of every source file that is in the key."""
        found = self.run.key_record.get("code")
        return found if isinstance(found, dict) else {}

    @property
    def key_facts(self) -> list[tuple[str, str]]:
        """The key's parts besides config, inputs and code files, which stand elsewhere on the page."""
        return flat({k: v for k, v in self.run.key_record.items() if k not in ("code", "config", "inputs")})

    @property
    def config_yaml(self) -> str:
        return yaml.safe_dump(self.run.config, sort_keys=False, allow_unicode=True) if self.run.config else ""

    @property
    def metrics(self) -> list[tuple[str, str]]:
        return flat(self.run.metrics)


def stage_view(ledger: Ledger, run: RunRow, cache: Path) -> StageView:
    """Raises nothing for artifacts whose bytes are gone: the page says so where they would be."""
    rows = {p.artifact_id: ledger.artifact(p.artifact_id, p.kind) for p in (*run.inputs, *run.outputs)}
    outputs = tuple(PortLine(p.name, rows[p.artifact_id]) for p in run.outputs)
    attempts = tuple(ledger.attempts(stage_key=run.stage_key, limit=None))
    return StageView(
        run=run,
        inputs=tuple(PortLine(p.name, rows[p.artifact_id]) for p in run.inputs),
        outputs=outputs,
        shown=tuple(s for s in (shown_of(o, cache) for o in outputs) if s.problem or s.curves or s.gallery),
        attempts=attempts,
        uses=tuple(ledger.uses_of(run.run_id)),
        events=tuple(e for e in ledger.events(subject=run.run_id, limit=_EVENTS) if e.kind not in _QUIET_EVENTS),
        before=_before(ledger, run, attempts),
    )


def _before(ledger: Ledger, run: RunRow, attempts: tuple[AttemptRow, ...]) -> str | None:
    """What the same node of the recipe had made before."""
    made = next((a for a in attempts if a.attempt_id == run.attempt_id), None)
    if made is None or made.node_id is None or made.pipeline_run_id is None:
        return None
    return ledger.run_of_node_before(made.node_id, made.pipeline_run_id, run.run_id)


def shown_of(port: PortLine, cache: Path) -> Shown:
    """Curves, videos and pictures of an artifact, or why they cannot be shown."""
    row = port.artifact
    try:
        found = gallery(row, cache) if row.kind != ArtifactKind.REPORT else None
        return Shown(port, curves(row, cache), found if found and found.total else None)
    except M4VError as error:
        return Shown(port, None, None, error.message)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as `a.b  value` lines, for people."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{prefix}{name}.")
        elif value not in (None, "", {}, []):
            lines.append((f"{prefix}{name}", value if isinstance(value, str) else _words(value)))
    return lines


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False)
