"""The plan of a run, made without running: what will run, what is a cache hit, why, and how long it may take.

    plan = make_plan("demo", nodes, lookup)

Neither torch nor Prefect is imported; a plan of a hundred stages takes well under two seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError, InputError, M4VError
from pipelines.keys import Change, KeyRecord, SeenCode, changes, summarise
from pipelines.ledger import RunRow
from pipelines.lookup import Hit, Lookup, Miss, Output, known_record
from pipelines.spec import StageNode, topological_order

PLAN_SCHEMA = 1
NO_HISTORY = "no stage that will run has a history to estimate from"


class PlanStatus(StrEnum):
    """`blocked-on` nodes wait for a node that runs; their `expectation` says what is then likely. `missing` nodes need
    something that is not on this machine: a collection, published weights, a GPU."""

    HIT = "hit"
    RUN = "run"
    BLOCKED = "blocked-on"
    MISSING = "missing"


class Expectation(StrEnum):
    HIT = "hit"
    RUN = "run"
    HIT_IF_UNCHANGED = "hit-if-unchanged"
    BLOCKED = "blocked"  # before what is missing is there, neither this node nor what waits for it can run


@dataclass(frozen=True)
class PlanStep:
    """One node. `estimate_s` is from the ledger's history (None: never run), 0 for a hit; `size_bytes` that
    of its outputs, expected from the latest run where it runs. `record` is what its key would digest now: of a node
    that waits, on the inputs that its latest run's neighbours made."""

    node_id: str
    stage: str
    status: PlanStatus
    expectation: Expectation
    reason: str
    changes: tuple[Change, ...] = ()
    waits_for: tuple[str, ...] = ()
    stage_key: str | None = None
    run_id: str | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    estimate_s: float | None = None
    size_bytes: int | None = None
    device: str = "cpu"
    ranks: int = 1
    record: KeyRecord | None = field(default=None, repr=False)
    problem: str | None = None  # of what is missing: `reason` in parts
    next_step: str | None = None

    @property
    def gpu_hours(self) -> float | None:
        """Expected; 0 on a CPU, None without history."""
        if self.device == "cpu":
            return 0.0
        return None if self.estimate_s is None else self.estimate_s * self.ranks / 3600

    def to_json(self) -> dict[str, object]:
        return {
            "node_id": self.node_id,
            "stage": self.stage,
            "status": str(self.status),
            "expectation": str(self.expectation),
            "reason": self.reason,
            "problem": self.problem,
            "next_step": self.next_step,
            "changes": [{**c.canonical(), "words": c.words()} for c in self.changes],
            "waits_for": list(self.waits_for),
            "stage_key": self.stage_key,
            "run_id": self.run_id,
            "outputs": {name: output.to_json() for name, output in self.outputs.items()},
            "estimate_s": self.estimate_s,
            "size_bytes": self.size_bytes,
            "device": self.device,
            "ranks": self.ranks,
            "gpu_hours": self.gpu_hours,
        }


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they run."""

    recipe: str
    steps: tuple[PlanStep, ...]

    @property
    def all_hits(self) -> bool:
        return all(step.status is PlanStatus.HIT for step in self.steps)

    @property
    def estimate_s(self) -> float:
        """Expected work in seconds, one stage after another, of the steps that are expected to run and known."""
        return sum(step.estimate_s or 0.0 for step in self._running)

    @property
    def unknown(self) -> list[str]:
        """Nodes that are expected to run and have no history."""
        return [step.node_id for step in self._running if step.estimate_s is None]

    @property
    def gpu_hours(self) -> float:
        """Expected, of the steps that are expected to run and known."""
        return sum(step.gpu_hours or 0.0 for step in self._running)

    @property
    def size_bytes(self) -> int:
        """Bytes that the steps which are expected to run will write, going by their latest runs."""
        return sum(step.size_bytes or 0 for step in self._running)

    @property
    def _running(self) -> list[PlanStep]:
        """Those that wait for what is missing are work too, once it is there."""
        return [step for step in self.steps if step.expectation in (Expectation.RUN, Expectation.BLOCKED)]

    @property
    def foretold(self) -> bool:
        """Whether the sums say anything: nothing runs, or some of what runs has a history."""
        return not self.unknown or len(self.unknown) < len(self._running)

    def counts(self) -> dict[str, int]:
        """Steps by expectation; `blocked` stands only where there are any."""
        found = {str(e): sum(step.expectation is e for step in self.steps) for e in Expectation}
        return {name: count for name, count in found.items() if count or name != Expectation.BLOCKED}

    def to_json(self) -> dict[str, object]:
        return {
            "schema_version": PLAN_SCHEMA,
            "recipe": self.recipe,
            "steps": [step.to_json() for step in self.steps],
            "counts": self.counts(),
            "estimate_s": self.estimate_s,
            "without_history": self.unknown,
            "gpu_hours": self.gpu_hours,
            "size_bytes": self.size_bytes,
            "all_hits": self.all_hits,
        }

    def to_markdown(self) -> str:
        """For a Prefect artifact: the same columns that the command line shows."""
        lines = [f"# Plan of {self.recipe}", "", "| stage | what | why | estimate | GPU-hours | size |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for step in self.steps:
            reason = step.reason.replace("|", "\\|")
            cells = (
                _number(step.estimate_s, ".1f", " s"),
                "-" if step.gpu_hours is None else hours_text(step.gpu_hours),
                _number(step.size_bytes, ","),
            )
            lines.append(f"| {step.node_id} | {step.status} | {reason} | {' | '.join(cells)} |")
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items() if count)
        sums = (
            f"about {self.estimate_s:.0f} s of work, {hours_text(self.gpu_hours)} GPU-hours, {self.size_bytes:,} bytes"
        )
        unknown = f"; no history for {', '.join(self.unknown)}" if self.unknown else ""
        told = f"{sums}{unknown}" if self.foretold else NO_HISTORY
        return "\n".join([*lines, "", f"{counts}; {told}.", ""])


def hours_text(hours: float) -> str:
    """GPU-hours for people: whole from ten on."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def make_plan(recipe: str, nodes: Sequence[StageNode], lookup: Lookup, *, tolerant: bool = False) -> Plan:
    """Plan `nodes` of a recipe; raises ConfigError for a graph, function or environment that cannot be, InputError
    for a collection or weights that are not there. `tolerant`: nodes that need a collection whose place nobody named,
    weights that are not at theirs, or a GPU, are planned as `missing`, with the reason."""
    with lookup.ledger.snapshot():  # one state of the ledger for all steps, in one transaction
        planner = _Planner(recipe, lookup, tolerant, lookup.ledger.latest_runs(recipe, {node.id for node in nodes}))
        return Plan(recipe, tuple(planner.step(node) for node in topological_order(nodes)))


class _Planner:
    def __init__(self, recipe: str, lookup: Lookup, tolerant: bool, latest: Mapping[str, RunRow]) -> None:
        self._recipe, self._lookup, self._tolerant, self._latest = recipe, lookup, tolerant, latest
        self._steps: dict[str, PlanStep] = {}
        self._seen: SeenCode = {}
        self._anywhere: dict[str, float | None] = {}  # mean seconds of a stage in any recipe
        # What a node's outputs will be if it makes what its latest run made.
        self._predicted: dict[tuple[str, str], str] = {}

    def step(self, node: StageNode) -> PlanStep:
        waits = tuple(u for u in node.upstream if self._steps[u].status is not PlanStatus.HIT)
        latest = self._latest.get(node.id)
        inputs = {name: self._predicted.get(source, "") for name, source in node.inputs.items()}
        try:
            record = self._lookup.record(node, inputs, self._seen)
        except (ConfigError, InputError) as error:
            if not self._tolerant or (node.spec.probe is not None and node.locations):
                raise  # a place that was named and is wrong is a mistake, not something to be brought yet
            step = self._steps[node.id] = self._missing(node, waits, error)
            return step
        found = self._lookup.find(record.stage_key) if all(inputs.values()) else Miss()
        step = self._blocked(node, record, latest, found, waits) if waits else self._ready(node, record, latest, found)
        run = found.run if isinstance(found, Hit) else latest
        if run is not None:
            self._predicted |= {(node.id, port.name): port.artifact_id for port in run.outputs}
        step = self._steps[node.id] = replace(step, record=record)
        return step

    def _missing(self, node: StageNode, waits: tuple[str, ...], error: M4VError) -> PlanStep:
        own = error.value in node.id.split(".")  # else one problem for all stages
        return PlanStep(
            node_id=node.id, stage=node.spec.name, status=PlanStatus.MISSING, expectation=Expectation.BLOCKED,
            reason=error.message, problem=error.what if own else error.problem, next_step=error.next_step,
            waits_for=waits, estimate_s=self._estimate(node), device=node.resources.device, ranks=node.resources.ranks,
        )  # fmt: skip

    def _ready(self, node: StageNode, record: KeyRecord, latest: RunRow | None, found: Hit | Miss) -> PlanStep:
        key = record.stage_key
        if isinstance(found, Hit):
            return PlanStep(
                node_id=node.id, stage=node.spec.name, status=PlanStatus.HIT, expectation=Expectation.HIT,
                reason=found.reason, stage_key=key, run_id=found.run.run_id, outputs=found.outputs, estimate_s=0.0,
                size_bytes=sum(o.size_bytes for o in found.outputs.values()), device=node.resources.device,
                ranks=node.resources.ranks,
            )  # fmt: skip
        different = tuple(changes(known_record(latest), record)) if latest is not None else ()
        reason = self._lookup.why(self._recipe, node, record, found)
        holder = self._lookup.ledger.holder(key)
        if holder is not None:
            reason += f"; being run now by {holder.owner}"
        return self._run(node, PlanStatus.RUN, Expectation.RUN, reason, different, (), key, latest)

    def _blocked(
        self, node: StageNode, record: KeyRecord, latest: RunRow | None, found: Hit | Miss, waits: tuple[str, ...]
    ) -> PlanStep:
        """A node behind one that runs: its inputs are not known, so it is judged on those expected."""
        stuck = [w for w in waits if self._steps[w].expectation is Expectation.BLOCKED]
        names = ", ".join(stuck or waits)
        different = tuple(changes(known_record(latest), record)) if latest is not None else ()
        own = tuple(c for c in different if c.component != "input" or c.old is None or c.new is None)
        if stuck:
            expectation, reason = Expectation.BLOCKED, f"cannot run before {names}"
        elif isinstance(found, Hit):
            expectation, reason = Expectation.HIT_IF_UNCHANGED, f"hit if output of {names} is unchanged"
        elif latest is None:
            expectation, reason = (
                Expectation.RUN,
                f"waits for {names}; will run: first run of {node.id} in {self._recipe}",
            )
        else:
            expectation = Expectation.RUN
            why = found.reason or summarise(list(own)) or "its inputs will be new"
            reason = f"waits for {names}; will run: {why}"
        return self._run(node, PlanStatus.BLOCKED, expectation, reason, own, waits, None, latest)

    def _run(
        self,
        node: StageNode,
        status: PlanStatus,
        expectation: Expectation,
        reason: str,
        different: tuple[Change, ...],
        waits: tuple[str, ...],
        key: str | None,
        latest: RunRow | None,
    ) -> PlanStep:
        return PlanStep(
            node_id=node.id, stage=node.spec.name, status=status, expectation=expectation, reason=reason,
            changes=different, waits_for=waits, stage_key=key, run_id=None, estimate_s=self._estimate(node),
            size_bytes=self._last_size(latest), device=node.resources.device, ranks=node.resources.ranks,
        )  # fmt: skip

    def _estimate(self, node: StageNode) -> float | None:
        """Mean of the last runs of this node, else of its stage anywhere."""
        ledger, stage = self._lookup.ledger, node.spec.name
        here = ledger.mean_duration(stage, recipe=self._recipe, node_id=node.id)
        if here is None and stage not in self._anywhere:
            self._anywhere[stage] = ledger.mean_duration(stage)
        return here if here is not None else self._anywhere[stage]

    def _last_size(self, latest: RunRow | None) -> int | None:
        if latest is None:
            return None
        return sum(self._size(port.artifact_id, port.kind) for port in latest.outputs)

    def _size(self, artifact_id: str, kind: ArtifactKind) -> int:
        try:
            return self._lookup.ledger.artifact(artifact_id, kind).size_bytes
        except InputError:
            return 0
