"""Promotion behind gates, roles and compare-and-swap; history and rollback; approvals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from channel_house import House
from sqlalchemy.exc import DBAPIError

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import DataIntegrityError, ExitClass, GateRefused, InputError
from m4v.core.storage import Storage
from pipelines.access import AccessDenied, Actor, Role
from pipelines.channels import Outcome, approve, decline, gate_verdicts, promote, rollback
from pipelines.ledger import ArtifactDeleted, ChannelMoved, Deletion, RequestStatus, Withdrawn
from pipelines.settings import ChannelPolicy, Settings

ADA, BO = Actor("ada", Role.OPERATOR), Actor("bo", Role.APPROVER)
CY, EVE = Actor("cy", Role.APPROVER), Actor("eve", Role.VIEWER)
FREE = Settings()
GUARDED = Settings(channels={"production": ChannelPolicy(approvals=2), "*": ChannelPolicy(override=Role.ADMIN)})


def good(house: House, name: str) -> str:
    checkpoint = house.checkpoint(name)
    house.judge(checkpoint, True)
    return checkpoint.artifact_id


def test_a_checkpoint_whose_gate_passed_is_promoted_and_the_chain_knows_how(house: House) -> None:
    checkpoint = house.checkpoint("one")
    verdict = house.judge(checkpoint, True)
    done = promote(house.ledger, FREE, ADA, checkpoint.artifact_id[:10], "staging", reason="weekly")
    assert (done.outcome, done.entry and done.entry.artifact_id) == (Outcome.PROMOTED, checkpoint.artifact_id)
    entry = house.ledger.channel("staging")
    assert entry is not None
    assert (entry.seq, entry.moved_by, entry.reason) == (1, "ada", "weekly")
    assert entry.facts["gate"]["artifact_id"] == verdict.artifact_id
    assert (entry.facts["action"], entry.facts["role"], entry.facts["override"]) == ("promote", "operator", None)
    assert promote(house.ledger, FREE, ADA, checkpoint.artifact_id, "staging").outcome is Outcome.UNCHANGED
    assert len(house.ledger.channel_history("staging")) == 1
    assert house.ledger.verify_chain().ok


def test_a_refused_gate_refuses_with_its_reasons_and_an_override_needs_role_and_reason(house: House) -> None:
    checkpoint = house.checkpoint("bad")
    house.judge(checkpoint, False, reasons=("flicker of 0.3 is above the maximum of 0.2",))
    with pytest.raises(GateRefused, match=r"flicker of 0.3 is above the maximum of 0.2") as refused:
        promote(house.ledger, FREE, ADA, checkpoint.artifact_id, "staging")
    assert refused.value.exit_class == ExitClass.GATE_REFUSED
    with pytest.raises(AccessDenied, match="to promote to staging against the gate takes the role approver"):
        promote(house.ledger, FREE, ADA, checkpoint.artifact_id, "staging", override="demo day")
    with pytest.raises(InputError, match="an override needs a reason"):
        promote(house.ledger, FREE, BO, checkpoint.artifact_id, "staging", override=" ")
    with pytest.raises(AccessDenied, match="role admin"):
        promote(house.ledger, GUARDED, BO, checkpoint.artifact_id, "staging", override="demo day")
    assert house.ledger.channel_history() == []
    done = promote(house.ledger, FREE, BO, checkpoint.artifact_id, "staging", override="demo day")
    assert done.entry is not None
    assert (done.entry.reason, done.entry.facts["override"]) == ("demo day", "demo day")
    assert done.entry.facts["gate"]["passed"] is False


def test_a_checkpoint_that_no_gate_has_judged_is_refused(house: House) -> None:
    judged = house.checkpoint("judged")
    house.judge(judged, True)
    baseline = next(a for a in house.ledger.artifacts(kind="checkpoint") if a.artifact_id != judged.artifact_id)
    with pytest.raises(GateRefused, match="no gate has judged this checkpoint"):
        promote(house.ledger, FREE, ADA, baseline.artifact_id, "staging")


def test_the_newest_verdict_counts(house: House) -> None:
    checkpoint = house.checkpoint("twice")
    house.judge(checkpoint, True, rules="loose")
    house.judge(checkpoint, False, rules="strict", reasons=("too dark",))
    assert [v.passed for v in gate_verdicts(house.ledger, checkpoint.artifact_id)] == [False, True]
    with pytest.raises(GateRefused, match="too dark"):
        promote(house.ledger, FREE, ADA, checkpoint.artifact_id, "staging")


@pytest.mark.parametrize("name", ["", "Prod", "a b", "-x", "x" * 64])
def test_names_of_channels(house: House, name: str) -> None:
    with pytest.raises(InputError, match="no name of a channel"):
        promote(house.ledger, FREE, ADA, "0", name)


def test_only_whole_unwithdrawn_checkpoints(house: House) -> None:
    dataset = house.publish(ArtifactKind.DATASET, "data")
    house.run("encode", {"dataset": dataset})
    with pytest.raises(InputError, match="channels name checkpoints; this is of kind dataset"):
        promote(house.ledger, FREE, ADA, dataset.artifact_id, "staging")
    with pytest.raises(AccessDenied, match="eve is a viewer"):
        promote(house.ledger, FREE, EVE, dataset.artifact_id, "staging")
    cut = house.checkpoint("cut")
    house.judge(cut, True)
    Storage(cut.uri).delete("data")
    with pytest.raises(DataIntegrityError, match="data"):
        promote(house.ledger, FREE, ADA, cut.artifact_id, "staging")
    gone = good(house, "gone")
    doomed = Deletion(gone, "checkpoint", "test")
    house.ledger.mark_deleted(0, lambda _: [doomed], by="t", policy="test")
    with pytest.raises(ArtifactDeleted, match="bytes of this checkpoint were deleted on "):
        promote(house.ledger, FREE, BO, gone, "staging", override="because")


def test_a_withdrawn_checkpoint_is_refused_also_with_an_override_and_on_rollback(house: House) -> None:
    one, two = good(house, "one"), good(house, "two")
    promote(house.ledger, FREE, ADA, one, "staging")
    promote(house.ledger, FREE, ADA, two, "staging")
    house.ledger.open_takedown(
        {"clips": ["c"]}, reason="licence", requested_by="ada", policy={}, blocks={}, clips=[],
        artifacts=[(one, "checkpoint", "saw the clip")],
    )  # fmt: skip
    with pytest.raises(Withdrawn):
        promote(house.ledger, FREE, BO, one, "production", override="because")
    with pytest.raises(Withdrawn):
        rollback(house.ledger, FREE, ADA, "staging")
    assert house.ledger.verify_chain().ok


def test_compare_and_swap(house: House) -> None:
    one, two, three = good(house, "one"), good(house, "two"), good(house, "three")
    promote(house.ledger, FREE, ADA, one, "staging", expect="none")
    with pytest.raises(ChannelMoved, match="another artifact"):
        promote(house.ledger, FREE, ADA, two, "staging", expect="none")
    with pytest.raises(ChannelMoved, match="nothing yet"):
        promote(house.ledger, FREE, ADA, two, "other", expect=one)
    promote(house.ledger, FREE, ADA, two, "staging", expect=one[:12])

    def attempt(checkpoint: str) -> bool:
        try:
            house.ledger.move_channel("staging", checkpoint, expected=two, moved_by="x", reason="")
        except ChannelMoved:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(attempt, [one, three, one, three]))
    assert won.count(True) == 1
    assert [e.seq for e in house.ledger.channel_history("staging")] == [3, 2, 1]


def test_rollback_goes_back_step_by_step_or_to_a_named_entry(house: House) -> None:
    one, two, three = good(house, "one"), good(house, "two"), good(house, "three")
    with pytest.raises(InputError, match="names nothing yet"):
        rollback(house.ledger, FREE, ADA, "staging")
    for checkpoint in (one, two, three):
        promote(house.ledger, FREE, ADA, checkpoint, "staging")
    with pytest.raises(AccessDenied):
        rollback(house.ledger, FREE, EVE, "staging")
    first = rollback(house.ledger, FREE, ADA, "staging")
    assert (first.seq, first.artifact_id, first.facts["to"], first.reason) == (4, two, 2, "rollback to entry 2")
    assert rollback(house.ledger, FREE, ADA, "staging").artifact_id == one
    with pytest.raises(InputError, match="no earlier entry"):
        rollback(house.ledger, FREE, ADA, "staging")
    assert rollback(house.ledger, FREE, ADA, "staging", to="3", reason="it was fine").artifact_id == three
    assert rollback(house.ledger, FREE, ADA, "staging").artifact_id == two
    assert rollback(house.ledger, FREE, ADA, "staging", to=three[:20], expect=two).artifact_id == three
    with pytest.raises(ChannelMoved):
        rollback(house.ledger, FREE, ADA, "staging", to="1", expect=two)
    for wrong in ("99", "f" * 64):
        with pytest.raises(InputError, match="no such entry"):
            rollback(house.ledger, FREE, ADA, "staging", to=wrong)
    assert [e.artifact_id for e in reversed(house.ledger.channel_history("staging"))] == [
        one, two, three, two, one, three, two, three,
    ]  # fmt: skip
    assert house.ledger.verify_chain().ok


def test_a_guarded_channel_moves_with_the_last_approval(house: House) -> None:
    checkpoint = good(house, "one")
    asked = promote(house.ledger, GUARDED, BO, checkpoint, "production", reason="release 3")
    assert asked.outcome is Outcome.WAITING
    assert asked.request is not None
    assert promote(house.ledger, GUARDED, ADA, checkpoint, "production").request == asked.request, "asked once"
    identity = asked.request.request_id
    with pytest.raises(InputError, match="who asks for a promotion cannot approve it"):
        approve(house.ledger, GUARDED, BO, identity)
    with pytest.raises(AccessDenied, match="takes the role approver"):
        approve(house.ledger, GUARDED, ADA, identity)
    first = approve(house.ledger, GUARDED, CY, identity[:14], "looks right")
    assert (first.status, first.approved_by) == (RequestStatus.PENDING, ["cy"])
    assert house.ledger.channel("production") is None
    with pytest.raises(InputError, match="has decided already"):
        approve(house.ledger, GUARDED, CY, identity)
    last = approve(house.ledger, GUARDED, Actor("dee", Role.ADMIN), identity)
    assert (last.status, last.note) == (RequestStatus.PROMOTED, "entry 1 of production")
    entry = house.ledger.channel("production")
    assert entry is not None
    assert (entry.artifact_id, entry.moved_by, entry.reason) == (checkpoint, "bo", "release 3")
    assert entry.facts["approved_by"] == ["cy", "dee"]
    with pytest.raises(InputError, match="promotion request is promoted already"):
        approve(house.ledger, GUARDED, Actor("fay", Role.ADMIN), identity)
    assert house.ledger.verify_chain() == house.ledger.verify_chain()
    assert house.ledger.verify_chain().ok
    assert house.ledger.rebuild() == 0


def test_a_request_closes_by_decline_cancel_or_a_channel_that_moved(house: House) -> None:
    one, two = good(house, "one"), good(house, "two")
    for actor, status in ((CY, RequestStatus.DECLINED), (ADA, RequestStatus.CANCELLED)):
        asked = promote(house.ledger, GUARDED, ADA, one, "production").request
        assert asked is not None
        with pytest.raises(AccessDenied):
            decline(house.ledger, EVE, asked.request_id)
        assert decline(house.ledger, actor, asked.request_id, "no").status is status
    late = promote(house.ledger, GUARDED, ADA, one, "production").request
    assert late is not None
    approve(house.ledger, GUARDED, CY, late.request_id)
    house.ledger.move_channel("production", two, expected=None, moved_by="root", reason="by hand")
    closed = approve(house.ledger, GUARDED, BO, late.request_id)
    assert (closed.status, closed.note) == (RequestStatus.VOID, "the channel was moved after this was asked")
    now = house.ledger.channel("production")
    assert now is not None
    assert now.artifact_id == two
    assert house.ledger.promotion_requests(status=RequestStatus.PENDING) == []
    assert house.ledger.verify_chain().ok


def test_a_policy_that_became_stricter_and_a_gate_that_changed_its_mind_count_at_approval(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    loose = Settings(channels={"production": ChannelPolicy(approvals=1)})
    asked = promote(house.ledger, loose, ADA, checkpoint.artifact_id, "production").request
    assert asked is not None
    assert approve(house.ledger, GUARDED, CY, asked.request_id).status is RequestStatus.PENDING
    house.judge(checkpoint, False, rules="newer", reasons=("blurred",))
    with pytest.raises(GateRefused, match="blurred"):
        approve(house.ledger, GUARDED, BO, asked.request_id)


TAMPERINGS = {
    "request": ("UPDATE promotion_request SET approvals_needed = 0", "row promotion_request .* was changed"),
    "approval": ("UPDATE approval SET actor = 'eve' WHERE actor = 'cy'", "row approval .* (is missing|has no event)"),
    "forged approval": (
        "INSERT INTO approval SELECT request_id, 'eve', role, decision, comment, given_at FROM approval",
        "row approval .* eve has no event",
    ),
    "pin": ("DELETE FROM pin", "row pin .* is missing"),
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_tampering_with_approvals_and_pins_shows(house: House, kind: str) -> None:
    checkpoint = good(house, "one")
    asked = promote(house.ledger, GUARDED, ADA, checkpoint, "production").request
    assert asked is not None
    approve(house.ledger, GUARDED, CY, asked.request_id)
    house.ledger.pin(checkpoint, by="ada", reason="paper")
    assert house.ledger.verify_chain().ok
    statement, message = TAMPERINGS[kind]
    if not statement.startswith("INSERT"):
        with pytest.raises(DBAPIError, match="append-only"):
            house.sql(statement)
    house.sql(statement, guards=False)
    problems = house.ledger.verify_chain().problems
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems)


def test_a_status_changed_behind_our_back_is_rebuilt(house: House) -> None:
    asked = promote(house.ledger, GUARDED, ADA, good(house, "one"), "production").request
    assert asked is not None
    pinned = house.ledger.pin(asked.artifact_id, by="ada", reason="paper")
    house.sql(
        "UPDATE promotion_request SET status = 'promoted'",
        "UPDATE pin SET released_at = pinned_at",
        "UPDATE artifact SET deletion = 'done' WHERE kind = 'checkpoint'",
    )
    assert len(house.ledger.verify_chain().stale) == 4, "a request, a pin, two checkpoints"
    assert house.ledger.rebuild() == 4
    assert house.ledger.promotion_request(asked.request_id) == asked
    assert house.ledger.pins() == [pinned]
