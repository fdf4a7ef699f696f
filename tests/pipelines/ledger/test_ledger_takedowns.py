"""Takedown cases and drain requests in the ledger, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from ledger_scenario import Scenario, artifact, new_run, reference

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InfrastructureError, InputError
from pipelines.ledger import Ledger, Withdrawn
from pipelines.ledger.takedowns import PART_CLIPS

SELECTOR = {"clips": ["c1"]}


def clip(number: int) -> dict[str, Any]:
    return {"clip_id": f"{number:032x}", "source": "wild", "source_id": f"{number}.mp4", "phash": ""}


def opened(ledger: Ledger, artifacts: Any = (), clips: Any = (), selector: Any = SELECTOR) -> str:
    return ledger.open_takedown(
        selector, reason="licence", requested_by="ada", policy={"delete": "keep"}, blocks={"sources": []},
        clips=list(clips), artifacts=list(artifacts),
    ).takedown_id  # fmt: skip


def test_a_case_is_opened_once(ledger: Ledger) -> None:
    case = opened(ledger, clips=[clip(1)])
    assert opened(ledger, clips=[clip(2)]) == case  # the same selector: the case that is there, as it was
    assert ledger.takedown_clips(case) == [clip(1)]
    assert ledger.find_takedown({"clips": ["c2"]}) is None
    assert ledger.takedown(case[:8]).reason == "licence"
    assert ledger.takedown_steps(case)[0].facts == {"blocks": {"sources": []}, "policy": {"delete": "keep"}}
    other = opened(ledger, selector={"clips": ["c2"]})
    assert ledger.blocked_parts() == [(case, 1), (other, 1)]  # a case without a clip blocks by its selector
    assert ledger.verify_chain().ok


def test_clips_come_in_parts_and_each_once(ledger: Ledger) -> None:
    case = opened(ledger, clips=[clip(n) for n in range(PART_CLIPS + 3)])
    assert ledger.blocked_parts() == [(case, 2)]
    assert ledger.extend_takedown(case, [clip(0), clip(PART_CLIPS + 5)], []) == (1, [])
    assert len(ledger.takedown_clips(case)) == PART_CLIPS + 4
    assert ledger.takedown_clips(case, 1) == [clip(n) for n in range(PART_CLIPS)]
    assert ledger.blocked_parts() == [(case, 3)]
    assert ledger.blocked_at() is not None


def test_a_withdrawn_artifact_starts_and_commits_nothing(scenario: Scenario, ledger: Ledger) -> None:
    old, new = artifact("old"), artifact("new")
    scenario.run("k1", {"dataset": old})
    claim = ledger.claim("k2", "tester")
    begun = ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="l", inputs=[reference(old, "dataset")])
    assert ledger.running_inputs() == {begun: {"dataset": old.artifact_id}}
    case = opened(ledger, [(old.artifact_id, "dataset", "holds 1 of the clips")])
    with pytest.raises(Withdrawn, match=rf"dataset was withdrawn by takedown {case}.*\(in train\)"):
        ledger.commit_run(claim, begun, new_run("k2", "train"), [reference(old, "dataset")], {"checkpoint": new})
    with pytest.raises(Withdrawn):
        ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="l", inputs=[reference(old, "dataset")])
    with pytest.raises(InputError, match="ledger has no such artifact"):
        ledger.artifact(new.artifact_id)
    # The takedown's own work may read it, and nobody may make it again.
    admitted = {"inputs": [reference(old, "dataset")], "admits": {old.artifact_id}}
    mine = ledger.begin_attempt(claim, stage="version", work_dir="w", log_path="l", **admitted)
    references = [reference(old, "dataset")]
    with pytest.raises(Withdrawn):
        ledger.commit_run(claim, mine, new_run("k2", "version"), references, {"o": old}, None, {old.artifact_id})
    run = ledger.commit_run(claim, mine, new_run("k2", "version"), references, {"o": new}, None, {old.artifact_id})
    assert ledger.run(run).outputs[0].artifact_id == new.artifact_id
    assert ledger.verify_chain().ok


def test_the_same_bytes_of_another_kind_are_not_withdrawn(scenario: Scenario, ledger: Ledger) -> None:
    dataset, clips = artifact("same"), artifact("same", ArtifactKind.CLIPS)
    scenario.run("k1", {"dataset": dataset, "clips": clips})
    case = opened(ledger, [(clips.artifact_id, "clips", "why")])
    assert ledger.withdrawal(dataset.artifact_id, "dataset") is None
    found = ledger.withdrawal(clips.artifact_id, "clips")
    assert (found.takedown_id, found.kind, found.reason) == (case, ArtifactKind.CLIPS, "why")  # type: ignore[union-attr]
    ledger.refuse_withdrawn([(dataset.artifact_id, "dataset")])
    second = opened(ledger, [(clips.artifact_id, "clips", "again")], selector={"clips": ["c2"]})
    assert ledger.withdrawals(second) == []  # the first who withdrew it did
    assert [w.artifact_id for w in ledger.withdrawals()] == [clips.artifact_id]


def test_a_step_is_done_once(ledger: Ledger) -> None:
    case = opened(ledger)
    ledger.record_step(case, "replaced", "a1", {"successor": "b1"})
    ledger.record_step(case, "replaced", "a1", {"successor": "b2"})
    ledger.record_step(case, "replaced", "a2", {"successor": None})
    assert [(s.item, s.facts["successor"]) for s in ledger.takedown_steps(case, "replaced")] == [
        ("a1", "b1"), ("a2", None),
    ]  # fmt: skip
    assert [e.kind for e in ledger.events(subject=case)].count("takedown.step") == 3


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE takedown_clips SET clips = '{\"clips\":[]}'", "takedown_clips"),
        ("DELETE FROM withdrawal", "withdrawal"),
        ("UPDATE takedown_step SET facts = '{}' WHERE step = 'opened'", "takedown_step"),
        ("UPDATE drain_request SET reason = 'other'", "drain_request"),
    ],
)
def test_tampering_is_refused_and_seen(scenario: Scenario, ledger: Ledger, statement: str, row: str) -> None:
    data = artifact("old")
    scenario.run("k1", {"dataset": data})
    opened(ledger, [(data.artifact_id, "dataset", "why")], [clip(1)])
    run = ledger.begin_pipeline_run("demo", {})
    ledger.request_drain(pipeline_run_id=run, reason="stop", requested_by="ada")
    with pytest.raises(Exception, match=f"{row} is append-only"):
        scenario.sql(statement)
    assert ledger.verify_chain().ok
    scenario.sql(statement, guards=False)
    assert any(row in problem for problem in ledger.verify_chain().problems)


def test_a_drain_request_is_of_the_claim_that_lives(ledger: Ledger) -> None:
    first = ledger.claim("k1", "one")
    asked = ledger.request_drain(stage_key="k1", reason="stop", requested_by="ada")
    assert ledger.drain_wanted(claim=first) == asked
    ledger.release(first)
    with pytest.raises(InputError, match="nothing is running under this stage key"):
        ledger.request_drain(stage_key="k1", reason="stop", requested_by="ada")
    second = ledger.claim("k1", "two")
    assert ledger.drain_wanted(claim=second) is None
    run = ledger.begin_pipeline_run("demo", {})
    of_run = ledger.request_drain(pipeline_run_id=run, reason="night", requested_by="bob")
    assert ledger.drain_wanted(claim=second, pipeline_run_id=run) == of_run
    assert ledger.drain_requests() == [of_run, asked]


def test_an_unknown_case_cannot_be_withdrawn_for(scenario: Scenario, ledger: Ledger) -> None:
    data = artifact("old")
    scenario.run("k1", {"dataset": data})
    with pytest.raises(InfrastructureError, match=r"(?i)foreign key"):
        ledger.extend_takedown("nobody", [], [(data.artifact_id, "dataset", "why")])
