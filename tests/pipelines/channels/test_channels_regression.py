"""A channel that takes nothing worse than what it names: by scores of one protocol, with reasons on record."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from channel_house import House

sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))

from test_eval_gate import FOLLOW, score_set

from eval.config import NonRegression
from eval.records import SCORES, write_record
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import GateRefused, InputError
from m4v.core.stage import OutputResult
from pipelines.access import AccessDenied, Actor, Role
from pipelines.channels import Outcome, approve, promote
from pipelines.settings import ChannelPolicy, Settings

ADA, BO, CY = Actor("ada", Role.OPERATOR), Actor("bo", Role.APPROVER), Actor("cy", Role.APPROVER)
STRICT = Settings(channels={"production": ChannelPolicy(non_regression=NonRegression(must_not_fall=(FOLLOW,)))})
SLOW = Settings(channels={"production": ChannelPolicy(approvals=1, non_regression=NonRegression())})
LEVEL = [0.5, 0.6, 0.7, 0.55, 0.65, 0.62, 0.58, 0.66]


def scored(house: House, name: str, shift: float, fps: float = 8) -> str:
    """A checkpoint whose gate passed, with real scores: those of `LEVEL`, all shifted."""
    checkpoint = house.checkpoint(name)
    house.judge(checkpoint, True)
    samples = house.publish(ArtifactKind.SAMPLES, f"real samples of {name}")
    house.run("generate", {"samples": samples}, {"checkpoint": checkpoint}, config={"real": name})
    folder = house.staging / f"scores of {name}"
    folder.mkdir(parents=True)
    write_record(folder / SCORES, score_set([[v + shift] for v in LEVEL], fps=fps))
    (folder / "name").write_text(name)
    manifest = build_manifest(folder, ArtifactKind.SCORES, {})
    write_manifest(folder, manifest)
    output = OutputResult(
        name="scores", kind=ArtifactKind.SCORES, artifact_id=manifest.artifact_id, staging=str(folder),
        size_bytes=manifest.size_bytes, files=2,
    )  # fmt: skip
    house.run("evaluate", {"scores": house.store.publish(output)}, {"samples": samples})
    return checkpoint.artifact_id


def test_an_equal_one_is_promoted_and_the_comparison_stands_on_record(house: House) -> None:
    first, equal = scored(house, "first", 0.0), scored(house, "equal", 0.0)
    done = promote(house.ledger, STRICT, ADA, first, "production")
    assert done.entry is not None
    assert done.entry.facts["regression"] is None  # it named nothing yet
    done = promote(house.ledger, STRICT, ADA, equal, "production")
    assert done.entry is not None
    held = done.entry.facts["regression"]
    assert (held["against"], held["passed"], held["reasons"], held["dimensions"]) == (first, True, [], 2)
    assert promote(house.ledger, STRICT, ADA, equal, "production").outcome is Outcome.UNCHANGED


def test_a_worse_one_is_refused_for_the_dimension_that_fell(house: House) -> None:
    first, worse = scored(house, "first", 0.0), scored(house, "worse", -0.1)
    promote(house.ledger, STRICT, ADA, first, "production")
    with pytest.raises(GateRefused, match=f"worse than what channel production names: {FOLLOW} is .* must not fall"):
        promote(house.ledger, STRICT, ADA, worse, "production")
    assert promote(house.ledger, STRICT, ADA, worse, "staging").entry is not None  # another channel, no such rule
    with pytest.raises(AccessDenied, match="role approver"):
        promote(house.ledger, STRICT, ADA, worse, "production", override="needed today")
    with pytest.raises(InputError, match="an override needs a reason"):
        promote(house.ledger, STRICT, BO, worse, "production", override=" ")
    done = promote(house.ledger, STRICT, BO, worse, "production", override="needed today")
    assert done.entry is not None
    assert done.entry.facts["regression"]["passed"] is False
    assert FOLLOW in done.entry.facts["regression"]["reasons"][0]


def test_what_was_never_compared_is_not_let_through(house: House) -> None:
    first, other = scored(house, "first", 0.0), scored(house, "other", 0.1, fps=24)
    promote(house.ledger, STRICT, ADA, first, "production")
    with pytest.raises(GateRefused, match="have no scores of one protocol"):
        promote(house.ledger, STRICT, ADA, other, "production")


def test_an_approval_asks_again(house: House) -> None:
    first, worse = scored(house, "first", 0.0), scored(house, "worse", -0.1)
    promote(house.ledger, STRICT, ADA, first, "production")
    lax = Settings(channels={"production": ChannelPolicy(approvals=1)})
    request = promote(house.ledger, lax, ADA, worse, "production").request
    assert request is not None
    with pytest.raises(GateRefused, match="worse than what channel production names"):
        approve(house.ledger, SLOW, CY, request.request_id)
    assert promote(house.ledger, SLOW, ADA, scored(house, "equal", 0.0), "production").outcome is Outcome.WAITING
