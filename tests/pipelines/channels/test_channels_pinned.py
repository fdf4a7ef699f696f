"""A channel that is pinned to a gate opens by its verdicts alone; who started a run cannot approve what it asks for."""

from __future__ import annotations

import pytest
from channel_house import House

from m4v.core.errors import ConfigError, GateRefused, InputError
from pipelines.access import Actor, Role
from pipelines.channels import approve, decline, gate_verdicts, promote, promote_run
from pipelines.ledger import RequestStatus
from pipelines.settings import ChannelPolicy, GatePin, Settings

ADA, BO = Actor("ada", Role.APPROVER), Actor("bo", Role.APPROVER)


def pinned(**digests: str) -> Settings:
    return Settings(channels={"production": ChannelPolicy(gate=GatePin(**digests))})


def test_a_later_laxer_gate_does_not_open_a_pinned_channel(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, False, rules="strict", reasons=("too dark",))
    (strict,) = gate_verdicts(house.ledger, checkpoint.artifact_id)
    settings = pinned(rules=strict.gate["rules"][:16])
    house.judge(checkpoint, True, rules="lax")
    with pytest.raises(GateRefused, match="the gate refused this checkpoint: too dark"):
        promote(house.ledger, settings, ADA, checkpoint.artifact_id, "production")
    # A channel of which no policy names a gate takes the newest verdict, and other channels are not concerned.
    assert promote(house.ledger, settings, ADA, checkpoint.artifact_id, "staging").verdict is not None
    assert house.ledger.channel("production") is None


def test_easier_samples_are_another_gate_too(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, False, prompts="hard", reasons=("too dark",))
    (hard,) = gate_verdicts(house.ledger, checkpoint.artifact_id)
    house.judge(checkpoint, True, prompts="easy")
    names = ("rules", "evaluate", "generate")
    settings = pinned(**{name: hard.gate[name] for name in names})
    with pytest.raises(GateRefused, match="too dark"):
        promote(house.ledger, settings, ADA, checkpoint.artifact_id, "production")
    easy = gate_verdicts(house.ledger, checkpoint.artifact_id)[0]
    assert [easy.gate[name] == hard.gate[name] for name in names] == [True, True, False]
    done = promote(house.ledger, pinned(generate=easy.gate["generate"]), ADA, checkpoint.artifact_id, "production")
    assert done.entry is not None
    assert done.entry.facts["gate"]["gate"] == dict(easy.gate)


def test_without_a_verdict_of_the_pinned_gate_only_an_override_opens(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    settings = pinned(rules="f" * 64)
    with pytest.raises(GateRefused, match="is pinned to has not judged this checkpoint, only others have") as refused:
        promote(house.ledger, settings, ADA, checkpoint.artifact_id, "production")
    assert f"m4v channels gates {checkpoint.artifact_id[:12]}" in str(refused.value.next_step)
    done = promote(house.ledger, settings, ADA, checkpoint.artifact_id, "production", override="the pin is stale")
    assert done.entry is not None
    assert done.entry.facts["gate"] is None


def test_a_pin_that_came_after_the_request_counts_at_approval(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True, rules="lax")
    loose = Settings(channels={"production": ChannelPolicy(approvals=1)})
    asked = promote(house.ledger, loose, ADA, checkpoint.artifact_id, "production").request
    assert asked is not None
    with pytest.raises(GateRefused, match="is pinned to"):
        approve(house.ledger, pinned(rules="e" * 64), BO, asked.request_id)


def test_the_recipe_of_the_run_that_judged_can_be_pinned(house: House) -> None:
    checkpoint = house.checkpoint("one")
    run = house.ledger.begin_pipeline_run("demo", {"name": "demo"})
    house.judge(checkpoint, True, pipeline_run_id=run)
    (verdict,) = gate_verdicts(house.ledger, checkpoint.artifact_id)
    assert verdict.gate["recipe"] == house.ledger.pipeline_run(run).recipe_digest
    assert promote(
        house.ledger, pinned(recipe=verdict.gate["recipe"]), ADA, checkpoint.artifact_id, "production"
    ).entry  # fmt: skip


@pytest.mark.parametrize("digests", [{}, {"rules": "abc"}, {"rules": "Z" * 20}])
def test_a_pin_names_a_gate_by_enough_of_a_digest(digests: dict[str, str]) -> None:
    from m4v.core.config import parse

    with pytest.raises(ConfigError):
        parse(Settings, {"channels": {"production": {"gate": digests}}}, "settings.yaml")


def test_who_started_the_run_counts_as_its_promoter(house: House) -> None:
    settings = Settings(channels={"production": ChannelPolicy(approvals=1)})
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    run = house.ledger.begin_pipeline_run("demo", {}, by="ada")
    promote_run(house.ledger, settings, run, checkpoint.artifact_id, "production")
    (request,) = house.ledger.promotion_requests(pipeline_run_id=run)
    assert request.askers == [f"run {run}", "ada"]
    with pytest.raises(InputError, match="who asks for a promotion cannot approve it"):
        approve(house.ledger, settings, ADA, request.request_id)
    assert house.ledger.channel("production") is None
    closed = approve(house.ledger, settings, BO, request.request_id)
    assert closed.status is RequestStatus.PROMOTED
    entry = house.ledger.channel("production")
    assert entry is not None
    assert (entry.moved_by, entry.facts["started_by"], entry.facts["approved_by"]) == (f"run {run}", "ada", ["bo"])
    assert house.ledger.verify_chain().ok


def test_who_started_the_run_takes_its_request_back_whatever_the_role(house: House) -> None:
    settings = Settings(channels={"production": ChannelPolicy(approvals=1)})
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    run = house.ledger.begin_pipeline_run("demo", {}, by="eve")
    promote_run(house.ledger, settings, run, checkpoint.artifact_id, "production")
    (request,) = house.ledger.promotion_requests(pipeline_run_id=run)
    assert decline(house.ledger, Actor("eve", Role.VIEWER), request.request_id).status is RequestStatus.CANCELLED


def test_a_run_is_started_by_whoever_the_process_acts_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_ACTOR", "cy")
    assert house.ledger.begun_by(house.ledger.begin_pipeline_run("demo", {})) == "cy"
