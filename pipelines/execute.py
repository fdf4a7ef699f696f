"""Executes a pipeline run: each node is a cache hit or runs under a claim, and the ledger remembers which.

    run = PipelineRun("demo", resolved, nodes, workspace, ledger=ledger, launcher=LocalLauncher())
    outcomes = run.run_all()

`execute` may be called from several threads (Prefect has one task per stage); `run_all` goes in order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError, Drained, ExitClass, M4VError
from m4v.core.stage import InputRef, Progress
from pipelines.assignment import Assignment
from pipelines.attempt import AttemptRunner, RetryPolicy
from pipelines.channels.automatic import gate_refused, judged_checkpoint
from pipelines.channels.gates import GATE
from pipelines.drains import DrainRequests, as_asked
from pipelines.facts import collect_facts
from pipelines.interrupts import drain_on_signal
from pipelines.launchers import Launcher
from pipelines.lease import LEASE_S, Lease
from pipelines.ledger import ArtifactDeleted, ClaimHeld, ClaimLost, Ledger
from pipelines.ledger import NodeOutcome as LedgerOutcome
from pipelines.lookup import Hit, Lookup, Miss
from pipelines.outcomes import Courier, NodeEvent, NodeOutcome, NodeStatus
from pipelines.provenance import BlobStore, start_environment
from pipelines.spec import StageNode, topological_order, until_node
from pipelines.step import Step
from pipelines.store import ArtifactStore
from pipelines.workspace import Workspace

__all__ = ["NodeEvent", "NodeOutcome", "NodeStatus", "PipelineRun"]

CLAIM_POLL_S = 0.5
MAX_LOST_CLAIMS = 3


def _ignore(_: NodeEvent) -> None:
    return None


class PipelineRun:
    """One run of a recipe, recorded in the ledger from its making until `finish`.

    `until` keeps that node and what it needs. `deep_verify` hashes every byte of a cache hit. `promote` is told
    (run, checkpoint) once the gate has passed, and says what became of it.
    `admits`: withdrawn artifacts that this run may read all the same, being a takedown's own work.
    """

    def __init__(
        self,
        recipe: str,
        resolved: Mapping[str, object],
        nodes: Sequence[StageNode],
        workspace: Workspace,
        *,
        ledger: Ledger,
        launcher: Launcher,
        until: str | None = None,
        trigger: str = "cli",
        deep_verify: bool = False,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        admits: Collection[str] = (),
        promote: Callable[[str, str], str] | None = None,
        on_event: Callable[[NodeEvent], None] = _ignore,
        courier: Courier | None = None,
    ) -> None:
        self.recipe, self.resolved, self.workspace = recipe, resolved, workspace
        self.nodes = until_node(topological_order(nodes), until)
        self.is_partial = until is not None
        self.outcomes: dict[str, NodeOutcome] = {}
        self._by_id = {node.id: node for node in self.nodes}
        self._ledger, self._on_event, self._courier, self._promote = ledger, on_event, courier, promote
        self._lookup = Lookup(ledger, launcher, deep=deep_verify, admits=admits)
        self._drain = threading.Event()
        store = ArtifactStore(workspace.store_uri)
        environment = start_environment(BlobStore(store.uri))
        self.id = ledger.begin_pipeline_run(recipe, resolved, trigger=trigger, environment=environment)
        self._drains = DrainRequests(ledger, self.id, self._drain)
        self._runner = AttemptRunner(ledger, store, launcher, workspace, self._drains, retry, admits)
        if courier is not None:
            courier.wake()

    def run_all(
        self, until: str | None = None, on_event: Callable[[NodeEvent], None] | None = None
    ) -> dict[str, NodeOutcome]:
        """Execute every node (up to `until`) in topological order, then `finish`; a failed branch blocks
        only what reads from it. The first Ctrl-C or SIGTERM drains the run (on the main thread)."""
        if on_event is not None:
            self._on_event = on_event
        self.nodes = until_node(self.nodes, until)
        with drain_on_signal(self.drain):
            try:
                for node in self.nodes:
                    self.execute(node.id)
            finally:
                self.finish()
        return self.outcomes

    def execute(self, node_id: str, on_progress: Callable[[Progress], None] | None = None) -> NodeOutcome:
        """Reuse or run one node whose upstream nodes are done. Failures are outcomes, not exceptions."""
        node, start = self._node(node_id), time.monotonic()
        self._emit("started", node_id)

        def progress(state: Progress) -> None:
            self._on_event(NodeEvent("progress", node_id, progress=state))
            if on_progress is not None:
                on_progress(state)

        step = Step(node)
        blocking = [u for u in node.upstream if u not in self.outcomes or not self.outcomes[u].status.has_outputs]
        try:
            if blocking:
                outcome = step.outcome(NodeStatus.BLOCKED, f"waits for {', '.join(blocking)}, which has no outputs")
            else:
                outcome = self._execute(step, progress)
        except M4VError as error:
            drained = error.exit_class is ExitClass.DRAINED
            outcome = step.failed(NodeStatus.DRAINED if drained else NodeStatus.FAILED, error)
        outcome = replace(outcome, seconds=time.monotonic() - start)
        self._record(node, outcome)
        self._emit("finished", node_id, outcome=outcome)
        return outcome

    def reuse(self, node_id: str) -> NodeOutcome | None:
        """The node's cache hit, recorded; None when it would have to run."""
        node, start = self._node(node_id), time.monotonic()
        if any(u not in self.outcomes for u in node.upstream):
            return None
        step = Step(node)
        step.record = self._lookup.record(node, {r.name: r.artifact_id for r in self._inputs(node)})
        found = self._find(step.record.stage_key)
        if isinstance(found, Miss):
            return None
        outcome = replace(step.hit(found), seconds=time.monotonic() - start)
        self._record(node, outcome)
        return outcome

    def drain(self) -> None:
        """Ask every running stage to save its state and stop, and start no other."""
        self._drain.set()

    def finish(self) -> ExitClass:
        """Record the end of the run; returns its exit class."""
        exit_class = self.exit_class
        bad = [o for o in self.outcomes.values() if not o.status.has_outputs and o.status is not NodeStatus.BLOCKED]
        message = "; ".join(f"{o.node_id}: {o.error}" for o in bad)
        if exit_class is ExitClass.BUG and not bad:
            message = f"ended after {len(self.outcomes)} of {len(self.nodes)} stages"
        if exit_class is ExitClass.GATE_REFUSED:
            message = "the evaluation gate refused the checkpoint"
        if exit_class is ExitClass.OK:
            message = self._promoted()
        self._ledger.finish_pipeline_run(self.id, exit_class, message)
        if self._courier is not None:
            self._courier.close()
        return exit_class

    def _promoted(self) -> str:
        """Do once what the recipe wants done with a checkpoint whose gate passed; what became of it, in words."""
        checkpoint = judged_checkpoint(self.nodes, self.outcomes) if self._promote is not None else None
        if self._promote is None or checkpoint is None:
            return ""
        promote, self._promote = self._promote, None
        told = promote(self.id, checkpoint)
        self._emit("note", GATE, told)
        return told

    @property
    def exit_class(self) -> ExitClass:
        """Of the first node that failed, else drained, else a refused gate, else ok; a run that ended before
        it reached every node is a bug's."""
        statuses = {o.status for o in self.outcomes.values()}
        for outcome in self.outcomes.values():
            if outcome.status is NodeStatus.FAILED:
                return outcome.exit_class
        if NodeStatus.DRAINED in statuses:
            return ExitClass.DRAINED
        if len(self.outcomes) < len(self.nodes):
            return ExitClass.BUG
        return ExitClass.GATE_REFUSED if self.gate_refused else ExitClass.OK

    @property
    def gate_refused(self) -> bool:
        """Whether a gate of this run said no."""
        return gate_refused(self.nodes, self.outcomes)

    # One node

    def _execute(self, step: Step, progress: Callable[[Progress], None]) -> NodeOutcome:
        node, inputs = step.node, self._inputs(step.node)
        step.record = self._lookup.record(node, {r.name: r.artifact_id for r in inputs})
        key = step.record.stage_key
        found = self._find(key)
        if isinstance(found, Miss):
            step.why = self._lookup.why(self.recipe, node, step.record, found)
        lost: ClaimLost
        for _ in range(MAX_LOST_CLAIMS):
            lease = self._claim(step, found)
            if isinstance(lease, Hit):
                self._runner.forget(key)  # a crash after the commit leaves resume state behind
                return step.hit(lease)
            work = self._assignment(step, inputs, progress)
            self._ledger.record_node(
                self.id, node.id, stage=node.spec.name, how=LedgerOutcome.RUNNING, reason=step.why, stage_key=key
            )
            try:
                with lease:
                    made = self._runner.run(work, lease)
            except ClaimLost as error:
                lost, found = error, self._find(key)
                self._emit("note", node.id, f"{error.what}; looking again")
                continue
            reason = f"{step.why}; {made.note}" if made.note else step.why
            return step.outcome(NodeStatus.RAN, reason, made.run_id, made.attempt_id, made.outputs)
        raise lost

    def _find(self, stage_key: str) -> Hit | Miss:
        """A hit is held for this run from here on: garbage collection leaves it alone."""
        found = self._lookup.find(stage_key)
        if isinstance(found, Hit):
            try:
                self._ledger.hold(self.id, [(o.artifact_id, o.kind) for o in found.outputs.values()])
            except ArtifactDeleted as gone:
                return Miss(f"output of run {found.run.run_id} is gone: {gone.what}", found.run)
        return found

    def _claim(self, step: Step, found: Hit | Miss) -> Lease | Hit:
        """Take the claim, waiting while another process runs this very key; its outputs are then a hit."""
        key, told = step.key, ""
        while True:
            if isinstance(found, Hit):
                return found
            request = self._drains.wanted()
            if self._drain.is_set():
                raise Drained(f"drained before it started{as_asked(request)}", where=step.node.id)
            try:
                lease = Lease(self._ledger, self._ledger.claim(key, f"pipeline run {self.id}", LEASE_S))
            except ClaimHeld as held:
                if held.owner != told:
                    told = held.owner
                    self._emit("note", step.node.id, f"waiting: {held.what}")
                self._drain.wait(CLAIM_POLL_S)
                found = self._find(key)
                continue
            # Between the look and the claim the other one may have committed.
            found = self._find(key)
            if isinstance(found, Miss):
                return lease
            self._ledger.release(lease.claim)

    def _assignment(self, step: Step, inputs: tuple[InputRef, ...], progress: Callable[[Progress], None]) -> Assignment:
        facts = None
        if ArtifactKind.REPORT in step.node.spec.outputs.values():
            facts = collect_facts(self._ledger, self.recipe, self.resolved, self.id, self.nodes, self.outcomes)
        return Assignment(
            node=step.node,
            record=step.known_record,
            inputs=inputs,
            pipeline_run_id=self.id,
            facts=facts,
            blocked=self._lookup.block_list(step.node, step.known_record),
            on_progress=progress,
            on_note=lambda text: self._emit("note", step.node.id, text),
        )

    def _inputs(self, node: StageNode) -> tuple[InputRef, ...]:
        refs = []
        for name, (source, output) in node.inputs.items():
            made = self.outcomes[source].outputs[output]
            refs.append(InputRef(name=name, kind=made.kind, artifact_id=made.artifact_id, uri=made.uri))
        return tuple(refs)

    def _record(self, node: StageNode, outcome: NodeOutcome) -> None:
        self.outcomes[node.id] = outcome
        how = LedgerOutcome.SKIPPED if outcome.status is NodeStatus.BLOCKED else LedgerOutcome(outcome.status)
        self._ledger.record_node(
            self.id, node.id, stage=node.spec.name, how=how, reason=outcome.error or outcome.reason,
            stage_key=outcome.stage_key, run_id=outcome.run_id, attempt_id=outcome.attempt_id,
        )  # fmt: skip
        if self._courier is not None:
            self._courier.wake()

    def _node(self, node_id: str) -> StageNode:
        if node_id not in self._by_id:
            raise ConfigError(
                "the run has no such stage", value=node_id, next_step=f"use one of {', '.join(self._by_id)}"
            )
        return self._by_id[node_id]

    def _emit(self, kind: str, node_id: str, text: str = "", outcome: NodeOutcome | None = None) -> None:
        self._on_event(NodeEvent(kind, node_id, text, outcome=outcome))
