"""A recipe's promotion: after the gate of its own run, in the run's name, or waiting for people."""

from __future__ import annotations

from channel_house import House

from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from pipelines import stages
from pipelines.access import Actor, Role
from pipelines.channels import approve, judged_checkpoint, promote_run
from pipelines.ledger import RequestStatus
from pipelines.lookup import Output
from pipelines.outcomes import NodeOutcome, NodeStatus
from pipelines.settings import ChannelPolicy, Settings
from pipelines.spec import StageNode


def node(node_id: str, spec, **inputs: tuple[str, str]) -> StageNode:  # type: ignore[no-untyped-def]
    return StageNode(id=node_id, spec=spec, config=FrozenModel(), inputs=inputs)


def outcome(node_id: str, name: str, kind: ArtifactKind) -> NodeOutcome:
    made = Output(f"artifact of {node_id}", "uri", kind, 1)
    return NodeOutcome(node_id, NodeStatus.RAN, "", 0.0, None, None, None, {name: made})


NODES = [
    node("init", stages.INIT),
    node("reward", stages.REWARD, checkpoint=("init", "checkpoint")),
    node("generate.trained", stages.GENERATE, checkpoint=("reward", "checkpoint")),
    node("generate.untrained", stages.GENERATE, checkpoint=("init", "checkpoint")),
    node("evaluate.trained", stages.EVALUATE, samples=("generate.trained", "samples")),
    node("evaluate.untrained", stages.EVALUATE, samples=("generate.untrained", "samples")),
    node("gate", stages.GATE, scores=("evaluate.trained", "scores"), baseline=("evaluate.untrained", "scores")),
]


def test_the_judged_checkpoint_is_the_gates_candidate() -> None:
    outcomes = {
        "init": outcome("init", "checkpoint", ArtifactKind.CHECKPOINT),
        "reward": outcome("reward", "checkpoint", ArtifactKind.CHECKPOINT),
    }
    assert judged_checkpoint(NODES, outcomes) is None, "the run did not get to the gate"
    outcomes["gate"] = outcome("gate", "scores", ArtifactKind.SCORES)
    assert judged_checkpoint(NODES, outcomes) == "artifact of reward"
    assert judged_checkpoint(NODES[:2], outcomes) is None


def test_a_run_promotes_in_its_own_name_and_only_once(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    run = house.ledger.begin_pipeline_run("demo", {})
    assert promote_run(house.ledger, Settings(), run, checkpoint.artifact_id, "staging") == (
        "promoted to staging, entry 1"
    )
    entry = house.ledger.channel("staging")
    assert entry is not None
    assert (entry.moved_by, entry.facts["pipeline_run_id"]) == (f"run {run}", run)
    told = promote_run(house.ledger, Settings(), run, checkpoint.artifact_id, "staging")
    assert told == "staging names this checkpoint already"


def test_a_run_waits_where_people_must_approve(house: House) -> None:
    settings = Settings(channels={"production": ChannelPolicy(approvals=1)})
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    run = house.ledger.begin_pipeline_run("demo", {})
    told = promote_run(house.ledger, settings, run, checkpoint.artifact_id, "production")
    (request,) = house.ledger.promotion_requests(pipeline_run_id=run, status=RequestStatus.PENDING)
    assert told == f"promotion to production waits for 1 approval: m4v runs approve {request.request_id}"
    assert house.ledger.channel("production") is None
    approve(house.ledger, settings, Actor("bo", Role.APPROVER), request.request_id)
    assert house.ledger.channel("production") is not None


def test_a_refused_promotion_is_told_and_moves_nothing(house: House) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    house.judge(checkpoint, False, rules="stricter", reasons=("too dark",))
    run = house.ledger.begin_pipeline_run("demo", {})
    told = promote_run(house.ledger, Settings(), run, checkpoint.artifact_id, "staging")
    assert told == "not promoted to staging: the gate refused this checkpoint: too dark"
    admins_only = Settings(channels={"*": ChannelPolicy(promote=Role.ADMIN)})
    told = promote_run(house.ledger, admins_only, run, checkpoint.artifact_id, "staging")
    assert "to promote to staging takes the role admin" in told
    assert house.ledger.channel_history() == []
