"""Two pipeline runs, or two stage runs, against each other.

compare_runs(workspace, ledger, "1m7z…", "1m81…").to_json()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.compare.data import data_deltas, of_kind, sample_pairs
from pipelines.compare.measures import code_delta, delta, environment_differences, metric_deltas
from pipelines.compare.model import (
    DataDelta,
    Difference,
    FieldChange,
    MetricDelta,
    OutputPair,
    RunComparison,
    RunSide,
    StageComparison,
    first_of,
)
from pipelines.keys import Change, changes, flatten, summarise
from pipelines.keys.changes import differing
from pipelines.ledger import ArtifactRow, AttemptRow, Ledger, PipelineRunRow, RunRow
from pipelines.lookup import known_record
from pipelines.workspace import Workspace

Ports = list[tuple[str | None, str, ArtifactKind]]


def compare_runs(workspace: Workspace, ledger: Ledger, before: str, after: str) -> RunComparison:
    """Compare two pipeline runs, or two stage runs (an attempt or an artifact stands for the run that made it).

    Raises InputError for an unknown id, for two of different sorts, and for an attempt or artifact without a run.
    """
    old, new = _run_of(ledger, before), _run_of(ledger, after)
    if isinstance(old, PipelineRunRow) and isinstance(new, PipelineRunRow):
        return _compare_pipelines(workspace, ledger, old, new)
    if isinstance(old, RunRow) and isinstance(new, RunRow):
        return _compare_stages(workspace, ledger, old, new)
    raise InputError(
        "a pipeline run cannot be compared with a stage run", value=f"{before} {after}",
        next_step="name two of one sort: m4v runs list, m4v runs list --stage STAGE",
    )  # fmt: skip


def _run_of(ledger: Ledger, identity: str) -> PipelineRunRow | RunRow:
    row = ledger.resolve(identity)
    if isinstance(row, AttemptRow):
        if row.run_id is None:
            raise InputError("this attempt has committed no run", value=identity, next_step=f"m4v runs show {identity}")
        return ledger.run(row.run_id)
    if isinstance(row, ArtifactRow):
        makers = ledger.producers(row.artifact_id)
        if not makers:
            raise InputError("the ledger knows no run that made this artifact", value=identity)
        return makers[-1]
    return row


def compare_stage(ledger: Ledger, name: str, before: RunRow | None, after: RunRow | None) -> StageComparison:
    """Two runs of a stage; one may be missing. Raises InputError when both are."""
    some = after or before
    if some is None:
        raise InputError("there is no run to compare", value=name)
    found = changes(known_record(before), known_record(after)) if before and after else []
    same_run = before is not None and after is not None and before.run_id == after.run_id
    ports = {p.name: (p, None) for p in (before.outputs if before else ())}
    pairs = {n: (p, None) for n, (p, _) in ports.items()} | {
        p.name: (ports.get(p.name, (None, None))[0], p) for p in (after.outputs if after else ())
    }
    return StageComparison(
        name=name, stage=some.stage, before_run=before.run_id if before else None,
        after_run=after.run_id if after else None, same_run=same_run,
        same_key=before is not None and after is not None and before.stage_key == after.stage_key,
        reason=_reason(before, after, found), changes=tuple(FieldChange.of(c) for c in found),
        outputs=tuple(
            OutputPair(n, str((b or a).kind), a.artifact_id if a else None, b.artifact_id if b else None)  # type: ignore[union-attr]
            for n, (a, b) in sorted(pairs.items())
        ),
        environment=environment_differences(before.environment, after.environment) if before and after else (),
        metrics=metric_deltas(ledger, before, after), seconds=_seconds(ledger, before, after),
    )  # fmt: skip


def _reason(before: RunRow | None, after: RunRow | None, found: list[Change]) -> str:
    if before is None or after is None:
        return f"only the {'second' if before is None else 'first'} has it"
    if before.run_id == after.run_id:
        return "one and the same run"
    return summarise(found) or "equal keys: two runs of one request"


def _seconds(ledger: Ledger, before: RunRow | None, after: RunRow | None) -> MetricDelta:
    took = [ledger.attempt(run.attempt_id).duration_s if run else None for run in (before, after)]
    return delta("seconds", took[0], took[1])


def _compare_stages(workspace: Workspace, ledger: Ledger, old: RunRow, new: RunRow) -> RunComparison:
    stage = compare_stage(ledger, new.stage, old, new)
    above = _upstream(ledger, old), _upstream(ledger, new)
    code = code_delta(old.environment.get("code") or {}, new.environment.get("code") or {}, stage.of("code"))
    return RunComparison(
        kind="stage run", before=_stage_side(ledger, old), after=_stage_side(ledger, new),
        config=stage.of("config", "seed", "stage"), data=_data(workspace, ledger, above[0], above[1]),
        code=code, environment=stage.environment + _recorded(stage), weights=_weights([stage]), metrics=stage.metrics,
        samples=sample_pairs(
            of_kind(ledger, _ports(old), ArtifactKind.SAMPLES), of_kind(ledger, _ports(new), ArtifactKind.SAMPLES)
        ),
        stages=(stage,),
    )  # fmt: skip


def _compare_pipelines(workspace: Workspace, ledger: Ledger, old: PipelineRunRow, new: PipelineRunRow) -> RunComparison:
    before, after = node_runs(ledger, old), node_runs(ledger, new)
    names = [*before, *(name for name in after if name not in before)]
    stages = tuple(compare_stage(ledger, name, before.get(name), after.get(name)) for name in names)
    recipe = differing("config", flatten(_by_name(old.resolved)), flatten(_by_name(new.resolved)))
    started = [ledger.begun_environment(row.pipeline_run_id) for row in (old, new)]
    files = first_of(change for stage in stages for change in stage.of("code"))
    ports: list[Ports] = [
        [(n, p.artifact_id, p.kind) for n, run in runs.items() for p in run.outputs] for runs in (before, after)
    ]
    return RunComparison(
        kind="pipeline run", before=_side(old), after=_side(new),
        config=tuple(FieldChange.of(change) for change in recipe),
        data=_data(workspace, ledger, ports[0], ports[1]),
        code=code_delta(started[0].get("code") or {}, started[1].get("code") or {}, files),
        environment=_environment(stages), weights=_weights(stages),
        metrics=tuple(replace(m, name=f"{s.name}: {m.name}") for s in stages if not s.same_run for m in s.metrics),
        samples=sample_pairs(
            of_kind(ledger, ports[0], ArtifactKind.SAMPLES), of_kind(ledger, ports[1], ArtifactKind.SAMPLES)
        ),
        stages=stages,
    )  # fmt: skip


def node_runs(ledger: Ledger, row: PipelineRunRow) -> dict[str, RunRow]:
    """The stage run that each node of a pipeline run made or used, in the order in which they ended."""
    return {n.node_id: ledger.run(n.run_id) for n in ledger.nodes(row.pipeline_run_id) if n.run_id is not None}


def _by_name(value: Any) -> Any:
    """Lists of things that carry a name as mappings, so that `train.57f.steps` is told as `--set` takes it."""
    if isinstance(value, Mapping):
        return {key: _by_name(item) for key, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    names = [item.get("name") for item in value if isinstance(item, Mapping)]
    if value and len(names) == len(value) == len({n for n in names if isinstance(n, str)}):
        return {name: _by_name(item) for name, item in zip(names, value, strict=True)}
    return [_by_name(item) for item in value]


def _ports(run: RunRow) -> Ports:
    return [(None, port.artifact_id, port.kind) for port in (*run.inputs, *run.outputs)]


def _upstream(ledger: Ledger, run: RunRow) -> Ports:
    """Artifacts that a run was made from, however far up, and its own."""
    found: Ports = _ports(run)
    for port in run.inputs:
        graph = ledger.lineage_up(port.artifact_id)
        found += [(None, a.artifact_id, ArtifactKind(a.kind)) for a in graph.artifacts.values()]
    return found


def _data(workspace: Workspace, ledger: Ledger, before: Ports, after: Ports) -> tuple[DataDelta, ...]:
    """Datasets; of runs without one (curation alone) their tables of clips."""
    for kind in (ArtifactKind.DATASET, ArtifactKind.CLIPS):
        old, new = of_kind(ledger, before, kind), of_kind(ledger, after, kind)
        if old or new:
            return data_deltas(workspace, ledger, old, new)
    return ()


def _weights(stages: Sequence[StageComparison]) -> tuple[FieldChange, ...]:
    """Digests of packaged weights, and imported ones that came as another input."""
    found = [c for s in stages for c in s.changes]
    return first_of(
        c for c in found if c.component == "weights" or (c.component == "input" and c.field.startswith("weights."))
    )


def _recorded(stage: StageComparison) -> tuple[Difference, ...]:
    return tuple(
        Difference(" ".join(filter(None, (c.component, c.field))), c.before, c.after)
        for c in stage.of("lock", "numerics")
    )


def _environment(stages: Sequence[StageComparison]) -> tuple[Difference, ...]:
    found = {(d.name, str(d.before), str(d.after)): d for s in stages for d in (*s.environment, *_recorded(s))}
    return tuple(sorted(found.values(), key=lambda d: d.name))


def _side(row: PipelineRunRow) -> RunSide:
    return RunSide(row.pipeline_run_id, row.recipe, str(row.status), row.started_at, row.finished_at, row.host)


def _stage_side(ledger: Ledger, row: RunRow) -> RunSide:
    attempt = ledger.attempt(row.attempt_id)
    return RunSide(row.run_id, row.stage, str(attempt.status), attempt.started_at, attempt.finished_at, attempt.host)
