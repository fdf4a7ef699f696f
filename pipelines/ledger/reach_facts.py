"""The rows that reachability is judged on, as plain values: graph, channels, pins, runs in flight, takedown cases."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import false, func, or_, select
from sqlalchemy.orm import Session

from pipelines.ledger import schema
from pipelines.ledger.process import is_dead
from pipelines.ledger.records import Status
from pipelines.ledger.schema_channels import Hold, Pin, PromotionRequest
from pipelines.ledger.schema_takedown import TakedownStep, Withdrawal

Key = tuple[str, str]  # (artifact id, kind)
_INTERRUPTED = (Status.DRAINED, Status.LOST)
FINISHED = "closed"  # the last step of a takedown case


class ReachArtifact(NamedTuple):
    """`used_at`: when it was last recorded, made, read or reused."""

    artifact_id: str
    kind: str
    size_bytes: int
    uri: str
    deletion: str | None
    used_at: datetime


class Entry(NamedTuple):
    """A channel's entry: `age` 0 is the current one. `gate`: the artifact with the gate's verdict, if it had one."""

    channel: str
    seq: int
    age: int
    artifact: Key
    gate: str | None


class KeptRun(NamedTuple):
    """A pipeline run that lives, one that may be resumed (drained, or its process died), or one of the newest of its
    recipe (`rank` 1 is the newest)."""

    pipeline_run_id: str
    recipe: str
    rank: int
    is_alive: bool
    is_resumable: bool


@dataclass
class ReachFacts:
    """`made_from`: artifact -> inputs of the runs that made it. `outputs`: pipeline run -> artifacts of its nodes."""

    artifacts: dict[Key, ReachArtifact] = field(default_factory=dict)
    made_from: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    entries: list[Entry] = field(default_factory=list)
    pins: list[tuple[Key, str, str]] = field(default_factory=list)  # artifact, by, reason
    requests: list[tuple[Key, str]] = field(default_factory=list)  # artifact, channel
    runs: list[KeptRun] = field(default_factory=list)
    outputs: dict[str, set[Key]] = field(default_factory=lambda: defaultdict(set))
    holds: dict[str, set[Key]] = field(default_factory=lambda: defaultdict(set))
    cited: list[tuple[Key, str]] = field(default_factory=list)  # artifact, takedown case
    verified: list[tuple[Key, str]] = field(default_factory=list)  # artifact, verification; not of the ledger


def load_reach_facts(session: Session, runs: int, resumable_since: datetime | None = None) -> ReachFacts:
    """One consistent picture; `runs`: how many of the newest pipeline runs of a recipe to load, `resumable_since`: from
    when on interrupted ones may be resumed."""
    facts = ReachFacts()
    _load_graph(session, facts)
    _load_channels(session, facts)
    _load_runs(session, facts, runs, resumable_since)
    pins = select(Pin.artifact_id, Pin.kind, Pin.pinned_by, Pin.reason).where(Pin.released_at.is_(None))
    facts.pins = [((a, k), by, reason) for a, k, by, reason in session.execute(pins)]
    asked = select(PromotionRequest.artifact_id, PromotionRequest.kind, PromotionRequest.channel)
    pending = session.execute(asked.where(PromotionRequest.status == "pending"))
    facts.requests = [((a, k), channel) for a, k, channel in pending]
    facts.cited = _cited(session)
    return facts


def _cited(session: Session) -> list[tuple[Key, str]]:
    """Artifacts that takedown cases withdrew and are not finished with."""
    step, withdrawal = TakedownStep, Withdrawal
    finished = select(step.takedown_id).where(step.step == FINISHED)
    query = select(withdrawal.artifact_id, withdrawal.kind, withdrawal.takedown_id)
    rows = session.execute(query.where(withdrawal.takedown_id.not_in(finished)))
    return [((artifact_id, kind), case) for artifact_id, kind, case in rows]


def _load_graph(session: Session, facts: ReachFacts) -> None:
    artifact, run = schema.Artifact, schema.StageRun
    used = {row.run_id: row.committed_at for row in session.execute(select(run.run_id, run.committed_at))}
    reused = select(schema.Reuse.run_id, func.max(schema.Reuse.recorded_at)).group_by(schema.Reuse.run_id)
    for run_id, at in session.execute(reused):
        used[run_id] = max(used[run_id], at)
    ins, outs = schema.RunInput, schema.RunOutput
    inputs: dict[str, set[Key]] = defaultdict(set)
    touched: dict[Key, datetime] = {}
    for run_id, artifact_id, kind in session.execute(select(ins.run_id, ins.artifact_id, ins.kind)):
        key = (artifact_id, kind)
        inputs[run_id].add(key)
        touched[key] = max(touched.get(key, used[run_id]), used[run_id])
    for run_id, artifact_id, kind in session.execute(select(outs.run_id, outs.artifact_id, outs.kind)):
        key = (artifact_id, kind)
        facts.made_from[key] |= inputs.get(run_id, set())
        touched[key] = max(touched.get(key, used[run_id]), used[run_id])
    columns = (artifact.artifact_id, artifact.kind, artifact.size_bytes, artifact.uri, artifact.deletion)
    for row in session.execute(select(*columns, artifact.recorded_at)):
        key = (row.artifact_id, row.kind)
        facts.artifacts[key] = ReachArtifact(
            row.artifact_id, row.kind, row.size_bytes, row.uri, row.deletion,
            used_at=max(row.recorded_at, touched.get(key, row.recorded_at)),
        )  # fmt: skip


def _load_channels(session: Session, facts: ReachFacts) -> None:
    channel, event = schema.Channel, schema.Event
    rows = session.execute(
        select(channel.name, channel.seq, channel.artifact_id, channel.kind).order_by(channel.name, channel.seq.desc())
    ).all()
    told = select(event.subject, event.payload).where(
        event.subject.in_({r.name for r in rows}), event.kind == "channel.moved"
    )
    gates = {
        (name, payload["seq"]): (payload.get("facts", {}).get("gate") or {}).get("artifact_id")
        for name, payload in session.execute(told)
    }
    newest: dict[str, int] = {}
    for name, seq, artifact_id, kind in rows:
        age = newest.setdefault(name, seq) - seq
        facts.entries.append(Entry(name, seq, age, (artifact_id, kind), gates.get((name, seq))))


def _load_runs(session: Session, facts: ReachFacts, runs: int, resumable_since: datetime | None) -> None:
    """Pipeline runs that live, and of every recipe the newest and the newest that ended well, with what they use."""
    run, node = schema.PipelineRun, schema.PipelineRunNode
    by_age = func.row_number().over(
        partition_by=run.recipe, order_by=(run.started_at.desc(), run.pipeline_run_id.desc())
    )
    ranked = select(run.pipeline_run_id, run.recipe, run.status, run.process, run.started_at, by_age.label("rank"))
    ended_well = ranked.where(run.status.in_([Status.SUCCEEDED, Status.REFUSED])).subquery()
    everything = ranked.subquery()
    found: dict[str, KeptRun] = {}
    unfinished = everything.c.status.in_([Status.RUNNING, *_INTERRUPTED])
    for table, extra in ((everything, unfinished), (ended_well, false())):
        query = select(table).where(or_(table.c.rank <= runs, extra))
        for pipeline_run_id, recipe, status, process, started_at, rank in session.execute(query):
            running = status == Status.RUNNING
            alive = running and not is_dead(process)
            interrupted = status in _INTERRUPTED or (running and not alive)
            resumable = interrupted and resumable_since is not None and started_at >= resumable_since
            if pipeline_run_id not in found and (alive or resumable or rank <= runs):
                found[pipeline_run_id] = KeptRun(pipeline_run_id, recipe, rank, alive, resumable)
    facts.runs = sorted(found.values(), key=lambda r: (not r.is_alive, r.recipe, r.rank))
    outs = schema.RunOutput
    alive_ids = {r.pipeline_run_id for r in facts.runs if r.is_alive}
    for number in range(0, len(facts.runs), 500):  # SQL parameters are limited in number
        ids = [r.pipeline_run_id for r in facts.runs[number : number + 500]]
        query = select(node.pipeline_run_id, outs.artifact_id, outs.kind).join(outs, outs.run_id == node.run_id)
        for pipeline_run_id, artifact_id, kind in session.execute(query.where(node.pipeline_run_id.in_(ids))):
            facts.outputs[pipeline_run_id].add((artifact_id, kind))
    for pipeline_run_id, artifact_id, kind in session.execute(
        select(Hold.pipeline_run_id, Hold.artifact_id, Hold.kind)
    ):
        if pipeline_run_id in alive_ids:
            facts.holds[pipeline_run_id].add((artifact_id, kind))
