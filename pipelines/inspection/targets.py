"""What an id on the command line stands for: artifacts of the wanted kinds, with the run that made each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import ArtifactRow, AttemptRow, Ledger, PipelineRunRow, RunRow
from pipelines.ledger.records import PortRow
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Target:
    """A published artifact. `run` is the stage run that made it, `recipe` and `node_id` where that ran in a recipe;
    None where the ledger does not know."""

    artifact: Artifact
    run: RunRow | None
    recipe: str | None = None
    node_id: str | None = None

    @property
    def id(self) -> str:
        return self.artifact.id


def find_targets(workspace: Workspace, ledger: Ledger, identity: str, kinds: Sequence[ArtifactKind]) -> list[Target]:
    """The artifacts of `kinds` that `identity` (an artifact, pipeline run, stage run or attempt) stands for.

    Raises InputError for an unknown id and when there is none of these kinds.
    """
    row = ledger.resolve(identity)
    cache = workspace.cache
    if isinstance(row, ArtifactRow):
        if row.kind not in kinds:
            raise _wrong_kind(ledger, row, kinds)
        makers = ledger.producers(row.artifact_id)
        return [_target(ledger, row, makers[-1] if makers else None, cache)]
    runs = _stage_runs(ledger, row)
    found = {
        port.artifact_id: _target(ledger, ledger.artifact(port.artifact_id, port.kind), run, cache)
        for run in runs
        for port in run.outputs
        if port.kind in kinds
    }
    if not found:
        raise InputError(
            f"this run has made no {_either(kinds)}", value=identity, where="ledger",
            next_step=f"m4v runs show {identity}, or m4v artifacts list --kind {kinds[0]}",
        )  # fmt: skip
    return list(found.values())


def find_target(workspace: Workspace, ledger: Ledger, identity: str, kinds: Sequence[ArtifactKind]) -> Target:
    """The one artifact that `identity` stands for; of a run with several, the one of the first kind in `kinds`."""
    found = find_targets(workspace, ledger, identity, kinds)
    for kind in kinds:
        of_kind = [target for target in found if target.artifact.kind == kind]
        if len(of_kind) > 1:
            ids = ", ".join(target.id[:12] for target in of_kind)
            raise InputError(f"this run has several {kind}", value=identity, next_step=f"name one of {ids}")
        if of_kind:
            return of_kind[0]
    raise AssertionError("unreachable: find_targets gives one at least")


def beside(workspace: Workspace, ledger: Ledger, target: Target) -> tuple[Target | None, Target | None]:
    """(clips, dataset) of clips or a dataset: itself, and the other one where the ledger has it and its bytes are
    there. Of several datasets made from the same clips the newest."""
    clips, dataset = ArtifactKind.CLIPS, ArtifactKind.DATASET
    if target.artifact.kind == clips:
        found = [p for run in reversed(ledger.consumers(target.id)) for p in run.outputs if p.kind == dataset]
        return target, _present(workspace, ledger, found, dataset)
    found = [p for p in (target.run.inputs if target.run else ()) if p.kind == clips]
    return _present(workspace, ledger, found, clips), target


def _present(workspace: Workspace, ledger: Ledger, ports: Sequence[PortRow], kind: ArtifactKind) -> Target | None:
    for port in ports:
        target = find_target(workspace, ledger, port.artifact_id, (kind,))
        if target.artifact.storage.exists(MANIFEST):
            return target
    return None


def _stage_runs(ledger: Ledger, row: PipelineRunRow | RunRow | AttemptRow) -> list[RunRow]:
    if isinstance(row, RunRow):
        return [row]
    if isinstance(row, AttemptRow):
        return [ledger.run(row.run_id)] if row.run_id else []
    nodes = {n.node_id: n for n in ledger.nodes(row.pipeline_run_id)}
    return [ledger.run(n.run_id) for n in nodes.values() if n.run_id]


def _target(ledger: Ledger, row: ArtifactRow, run: RunRow | None, cache: Path) -> Target:
    artifact = Artifact(row.uri, row.artifact_id, row.kind, cache)
    if run is None:
        return Target(artifact, None)
    attempt = ledger.attempt(run.attempt_id)
    recipe = ledger.pipeline_run(attempt.pipeline_run_id).recipe if attempt.pipeline_run_id else None
    return Target(artifact, run, recipe, attempt.node_id)


def _wrong_kind(ledger: Ledger, row: ArtifactRow, kinds: Sequence[ArtifactKind]) -> InputError:
    """Points at an artifact of the right kind that this one was made from, where there is one."""
    above = [p for run in ledger.producers(row.artifact_id) for p in run.inputs if p.kind in kinds]
    step = f"m4v artifacts list --kind {kinds[0]}"
    if above:
        step = f"it was made from {above[0].kind} {above[0].artifact_id[:12]}: name that"
    return InputError(f"this is a {row.kind}, not {_either(kinds)}", value=row.artifact_id[:12], next_step=step)


def _either(kinds: Sequence[ArtifactKind]) -> str:
    return " or ".join(str(kind) for kind in kinds)
