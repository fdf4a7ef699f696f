"""The ledger's facts of a pipeline run, as `pipelines.facts` hands them to the report."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from m4v.core.errors import DataIntegrityError


class _Facts(BaseModel):
    """Newer ledgers may say more than this page shows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class OutputFacts(_Facts):
    artifact_id: str
    kind: str
    size_bytes: int = 0


class NodeFacts(_Facts):
    """One stage of the run. `seconds` of this run, `work_seconds` of the attempt that made the outputs."""

    node_id: str
    stage: str
    status: str
    reason: str = ""
    seconds: float | None = None
    work_seconds: float | None = None
    attempt_number: int | None = None
    attempt_id: str | None = None
    run_id: str | None = None
    stage_key: str | None = None
    committed_at: str | None = None
    error: str | None = None
    ranks: int = 1
    seed: int = 0
    config: dict[str, JsonValue] = {}
    metrics: dict[str, JsonValue] = {}
    environment: dict[str, JsonValue] = {}
    outputs: dict[str, OutputFacts] = {}

    @property
    def duration_s(self) -> float | None:
        return self.work_seconds if self.work_seconds is not None else self.seconds


class EdgeFacts(_Facts):
    source: str
    target: str
    input: str
    artifact_id: str | None = None
    kind: str | None = None


class RunFacts(_Facts):
    recipe: str = ""
    resolved: dict[str, JsonValue] = {}
    pipeline_run_id: str = ""
    started_at: str = ""
    host: dict[str, JsonValue] = {}
    nodes: tuple[NodeFacts, ...] = ()
    edges: tuple[EdgeFacts, ...] = ()

    def location(self, source: str) -> str:
        """Where the recipe says a source lies; empty for a generated one."""
        entries = self.resolved.get("sources")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("name") == source:
                return str(entry.get("location") or "")
        return ""

    def node(self, node_id: str) -> NodeFacts | None:
        return next((n for n in self.nodes if n.node_id == node_id), None)


def read_facts(path: Path) -> RunFacts:
    """Raises DataIntegrityError naming the first field that does not fit."""
    try:
        data = json.loads(path.read_text())
        edges = [{**e, "source": e["from"], "target": e["to"]} for e in data.get("edges", [])]
        return RunFacts.model_validate({**data, "edges": edges})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        raise DataIntegrityError(f"{place}: {first['msg']}", where="facts of the run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataIntegrityError(f"facts of the run do not parse: {error}", where=path.name) from None
