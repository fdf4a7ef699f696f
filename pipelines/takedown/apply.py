"""Carries a takedown out, step by step. Every finished step is a row of the ledger, so that the same command goes on
where it was killed, and says that all is done when it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import canonical_json
from m4v.core.errors import InfrastructureError, InputError
from m4v.core.storage import Storage
from pipelines.access import Actor, Role, require
from pipelines.exposure.states import record_missing_states
from pipelines.impact import Impact, Verdict, impact
from pipelines.launchers import Launcher
from pipelines.lease import LEASE_S, Lease
from pipelines.ledger import AttemptRow, Claim, ClaimHeld, Ledger, TakedownRow
from pipelines.membership import ClipSelector
from pipelines.takedown.affected import Affected, Held, affected_by, artifact_of, blocks_of
from pipelines.takedown.delete import count_bytes, delete_artifact, delete_copies, delete_items
from pipelines.takedown.drain import concerned, drain_concerned
from pipelines.takedown.policy import Delete, Policy, may_delete
from pipelines.takedown.receipt import CLOSED, DIGEST, DUE, FOLDER, RECEIPT, make_receipt, to_markdown
from pipelines.takedown.replace import Replacer
from pipelines.takedown.retrain import Cure, retrain_plans
from pipelines.takedown.unfinished import delete_unfinished, delete_verified
from pipelines.workspace import Workspace

DRAIN_WAIT_S = 900.0
_REPLACED = (ArtifactKind.CLIPS, ArtifactKind.DATASET)


@dataclass(frozen=True)
class Applied:
    """What became of a takedown: its receipt, and whether this call had anything to do at all."""

    case: TakedownRow
    receipt: Mapping[str, Any]
    receipt_uri: str
    cures: tuple[Cure, ...]
    did_something: bool


class TakedownRun:
    """One call of `m4v takedown apply`. `tell` hears what happens, one line each."""

    def __init__(
        self,
        ledger: Ledger,
        workspace: Workspace,
        launcher: Launcher,
        actor: Actor,
        *,
        drain_wait_s: float = DRAIN_WAIT_S,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._ledger, self._workspace, self._launcher, self._actor = ledger, workspace, launcher, actor
        self._drain_wait_s, self._tell = drain_wait_s, tell
        self._did = False

    def apply(self, selector: ClipSelector, reason: str, policy: Policy) -> Applied:
        """Open the case of a selector, or take it up again, and bring it to its end.

        The reason and the policy of a case stay those that it was opened with. Raises AccessDenied, InputError for a
        term that matches nothing, InfrastructureError when running work does not stop in time and while another
        process works on the case.
        """
        require(self._actor, Role.APPROVER, "take clips down")
        case = self._ledger.find_takedown(selector.canonical())
        deletes = policy.delete is not Delete.KEEP if case is None else self._policy(case)["delete"] != Delete.KEEP
        if deletes:
            require(self._actor, Role.ADMIN, "delete bytes (--delete keep does not)")
        for checkpoint, problem in record_missing_states(self._ledger):
            if problem is not None:  # it counts as one that saw the clips
                self._tell(f"exposure of checkpoint {checkpoint[:12]} is not known: {problem.what}")
        if case is None:
            case = self._open(selector, reason, policy)
        with Lease(self._ledger, self._claim(case)) as self._lease:
            self._settle(case, selector)
            self._replace(case, selector)
            self._delete(case, selector)
            cures = self._retrain(case, selector)
            receipt, uri = self._receipt(case)
        return Applied(case, receipt, uri, tuple(cures), self._did)

    # The steps

    def _claim(self, case: TakedownRow) -> Claim:
        """One process at a time works on a case: what one counts the other must not have deleted."""
        try:
            return self._ledger.claim(f"takedown {case.takedown_id}", f"takedown by {self._actor.name}", LEASE_S)
        except ClaimHeld as held:
            raise InfrastructureError(
                f"another process is at work on this case: {held.owner} on {held.host}", value=case.takedown_id,
                next_step="wait for it; the same command then tells what was done",
            ) from held  # fmt: skip

    def _open(self, selector: ClipSelector, reason: str, policy: Policy) -> TakedownRow:
        if not reason.strip():
            raise InputError("a takedown needs a reason", value=reason, next_step="--reason TEXT")
        found = self._found(selector)
        held = self._withdrawals(found, selector, policy.withdraw_checkpoints)
        case = self._ledger.open_takedown(
            selector.canonical(), reason=reason, requested_by=self._actor.name, policy=policy.recorded(),
            blocks=blocks_of(selector), clips=found.blocked(), artifacts=held,
        )  # fmt: skip
        self._tell(f"opened case {case.takedown_id}: {len(found.clips)} clips, {len(held)} artifacts")
        self._did = True
        return case

    def _settle(self, case: TakedownRow, selector: ClipSelector) -> None:
        """Stop what reads the clips, and withdraw what was committed meanwhile, until nothing new turns up."""
        while True:
            running = concerned(self._ledger)
            if running:
                self._did = True
                self._drain(case, running)
            found = self._found(selector)
            held = self._withdrawals(found, selector, bool(self._policy(case).get("withdraw_checkpoints")))
            clips, artifacts = self._ledger.extend_takedown(case.takedown_id, found.blocked(), held)
            if not clips and not artifacts and not concerned(self._ledger):
                return
            self._did = True
            if clips or artifacts:
                self._tell(f"{clips} more clips and {len(artifacts)} more artifacts turned up")

    def _withdrawals(self, found: Affected, selector: ClipSelector, checkpoints: bool) -> list[Held]:
        """What goes out of use: what holds or shows the clips and, if asked, the checkpoints that they went into."""
        held = found.withdrawals()
        if checkpoints:
            reached = impact(self._ledger, selector).checkpoints
            seen = [c for c in reached if c.verdict is not Verdict.CONTAINS]
            held += [(c.artifact_id, str(ArtifactKind.CHECKPOINT), f"{c.verdict} the clips") for c in seen]
        return held

    def _policy(self, case: TakedownRow) -> dict[str, Any]:
        policy: dict[str, Any] = self._ledger.takedown_steps(case.takedown_id, "opened")[0].facts["policy"]
        return policy

    def _drain(self, case: TakedownRow, running: list[AttemptRow]) -> None:
        ended = drain_concerned(
            self._ledger, case.takedown_id, self._actor.name, running, self._drain_wait_s, self._tell
        )
        for attempt in ended:
            facts = {
                "stage": attempt.stage, "stage_key": attempt.stage_key, "status": str(attempt.status),
                "message": attempt.message,
            }  # fmt: skip
            self._ledger.record_step(case.takedown_id, "drained", attempt.attempt_id, facts)

    def _found(self, selector: ClipSelector, measure: bool = True) -> Affected:
        return affected_by(self._ledger, self._workspace, selector, measure=measure)

    def _replace(self, case: TakedownRow, selector: ClipSelector) -> None:
        done = {step.item for step in self._ledger.takedown_steps(case.takedown_id, "replaced")}
        mine = {(w.artifact_id, str(w.kind)) for w in self._ledger.withdrawals(case.takedown_id)}
        replacer = Replacer(self._ledger, self._workspace, self._launcher, case.takedown_id)
        for (artifact_id, kind), clips in self._found(selector, measure=False).holders.items():
            if artifact_id in done or (artifact_id, kind) not in mine or kind not in _REPLACED:
                continue
            self._lease.check()
            facts = replacer.replace(artifact_id, kind, clips)
            self._step(case, "replaced", artifact_id, facts)
            self._tell(f"{kind} {artifact_id[:12]} -> {(facts['successor'] or facts['note'])[:60]}")

    def _delete(self, case: TakedownRow, selector: ClipSelector) -> None:
        """Items first: their keys are read from the clip tables that go after them."""
        if not may_delete(self._policy(case)):
            return
        clips = frozenset(c["clip_id"] for c in self._ledger.takedown_clips(case.takedown_id))
        doomed = self._doomed(case, selector)
        for folder in delete_verified(self._ledger, self._workspace):
            self._tell(f"deleted what verification {folder.name} kept")
        for artifact_id, kind in doomed:
            if kind == ArtifactKind.CLIPS:
                table = artifact_of(self._ledger, self._workspace, artifact_id, kind)
                self._step(
                    case, "deleted", f"items of {artifact_id}",
                    delete_items(self._ledger, self._workspace, table, clips).facts(),
                )  # fmt: skip
        for left in delete_unfinished(self._ledger, self._workspace):
            facts = {"size_bytes": left.size_bytes, "bytes_freed": left.size_bytes, "why": left.why}
            self._step(case, "deleted", f"{left.kind} {Path(left.uri).name}", facts)
        for artifact_id, kind in doomed:
            self._lease.check()
            self._delete_artifact(case, artifact_id, kind)
        self._ledger.record_step(case.takedown_id, "deletion")

    def _doomed(self, case: TakedownRow, selector: ClipSelector) -> list[tuple[str, str]]:
        """Withdrawn artifacts that hold or show the clips and whose bytes are not deleted yet, whoever withdrew them.

        Raises InputError while another case has still to make a new version of one.
        """
        done = {step.item for step in self._ledger.takedown_steps(case.takedown_id, "deleted")}
        begun = {step.item for step in self._ledger.takedown_steps(case.takedown_id, "deleting")}
        found = []
        for artifact_id, kind, _ in self._found(selector, measure=False).withdrawals():
            row = self._ledger.withdrawal(artifact_id, kind)
            if f"{kind} {artifact_id}" in done or row is None:
                continue
            replaced = {step.item for step in self._ledger.takedown_steps(row.takedown_id, "replaced")}
            if kind in _REPLACED and artifact_id not in replaced:
                raise InputError(
                    "another takedown has not finished with this artifact", value=row.takedown_id, where=artifact_id,
                    next_step="apply that one again first",
                )  # fmt: skip
            if f"{kind} {artifact_id}" in begun or self._ledger.artifact(artifact_id, kind).deletion != "done":
                found.append((artifact_id, kind))
        return found

    def _delete_artifact(self, case: TakedownRow, artifact_id: str, kind: str) -> None:
        """What goes is counted and recorded before it goes, so that a second start tells the same."""
        item = f"{kind} {artifact_id}"
        row = self._ledger.artifact(artifact_id, kind)
        self._ledger.record_step(case.takedown_id, "deleting", item, count_bytes(Storage(row.uri)).facts())
        counted = next(s for s in self._ledger.takedown_steps(case.takedown_id, "deleting") if s.item == item).facts
        delete_artifact(self._ledger, row, self._actor.name, f"takedown {case.takedown_id}")
        delete_copies(self._workspace, artifact_id)
        self._step(case, "deleted", item, counted)
        self._tell(f"deleted {kind} {artifact_id[:12]}: {counted['bytes_freed']} bytes freed")

    def _retrain(self, case: TakedownRow, selector: ClipSelector) -> list[Cure]:
        found = impact(self._ledger, selector)
        cures = retrain_plans(self._ledger, self._launcher, found)
        self._ledger.record_step(case.takedown_id, "impact", "", _affected(found))
        told = [{k: v for k, v in cure.to_json().items() if k != "plan"} for cure in cures]
        self._ledger.record_step(case.takedown_id, "retrain", "", {"cures": told})
        return cures

    def _receipt(self, case: TakedownRow) -> tuple[dict[str, Any], str]:
        """Issue the receipt of how the case stands; issued before, it is the same one."""
        receipt = make_receipt(self._ledger, case)
        folder = Storage(self._workspace.store_uri).child(f"{FOLDER}/{case.takedown_id}")
        name = f"receipt-{receipt[DIGEST][:12]}"
        folder.write_bytes(f"{name}.json", canonical_json(receipt))
        folder.write_bytes(f"{name}.md", to_markdown(receipt).encode())
        self._ledger.record_step(case.takedown_id, RECEIPT, receipt[DIGEST], {"name": name})
        if not receipt["deletion"].startswith(DUE):  # from here on garbage collection may have what is left
            self._ledger.record_step(case.takedown_id, CLOSED)
        return receipt, f"{folder.uri}/{name}.json"

    def _step(self, case: TakedownRow, step: str, item: str, facts: Mapping[str, Any]) -> None:
        self._ledger.record_step(case.takedown_id, step, item, facts)
        self._did = True


def _affected(found: Impact) -> dict[str, Any]:
    told = found.to_json()
    return {name: told[name] for name in ("counts", "checkpoints", "products", "channels", "unread")}
