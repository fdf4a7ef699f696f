"""Promotion by what VBench measured: a gate that judges the suite beside the local metrics, and a channel that takes
nothing whose suite scores fell; scores of stand-in weights open nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from channel_house import House

sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))

from test_eval_gate import FOLLOW, score_set
from test_eval_suite_scores import STANDING_IN, TOOLING, samples

from eval.config import NonRegression
from eval.records import SCORES, STAND_IN, write_record
from eval.suite_scores import suite_score_set
from eval.suites import DimensionResult, Tooling, VideoRow
from eval.vbench.aggregate import fast_figures
from eval.vbench.inputs import suite_inputs
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import ConfigError, GateRefused
from m4v.core.stage import OutputResult
from pipelines.access import Actor, Role
from pipelines.channels import gate_verdicts, promote
from pipelines.channels.regression import regression
from pipelines.settings import ChannelPolicy, GatePin, Settings
from pipelines.store import ArtifactRecord

ADA = Actor("ada", Role.OPERATOR)
SMOOTH, QUALITY = "motion_smoothness", "imaging_quality"


def publish_scores(
    house: House, checkpoint: ArtifactRecord, shifts: dict[str, float], tooling: Tooling
) -> ArtifactRecord:
    """The record that the stage `vbench` writes of a checkpoint: each dimension's level, shifted."""
    made = samples(checkpoint.artifact_id)
    inputs = suite_inputs(made, "id", tuple(shifts), "custom")
    results = []
    for name, by in shifts.items():
        values = [0.5 + by + video.prompt_index / 100 for video in made.videos]
        rows = tuple(
            VideoRow(file=v.file, prompt_index=v.prompt_index, sample_index=0, value=value)
            for v, value in zip(made.videos, values, strict=True)
        )
        results.append(
            DimensionResult(
                dimension=name, status="measured", expected=len(rows), score=sum(values) / len(values), rows=rows
            )
        )
    folder = house.staging / f"suite {next(house.numbers)}"
    folder.mkdir(parents=True)
    write_record(folder / SCORES, suite_score_set(made, inputs, results, tooling, [fast_figures(results)]))
    manifest = build_manifest(folder, ArtifactKind.SCORES, {"suite": "vbench"})
    write_manifest(folder, manifest)
    output = OutputResult(
        name="scores", kind=ArtifactKind.SCORES, artifact_id=manifest.artifact_id, staging=str(folder),
        size_bytes=manifest.size_bytes, files=1,
    )  # fmt: skip
    return house.store.publish(output)


def measured(
    house: House, name: str, tooling: Tooling = TOOLING, suite_of: ArtifactRecord | None = None, **shifts: float
) -> tuple[ArtifactRecord, ArtifactRecord]:
    """A checkpoint with the suite's scores, and a gate's good verdict on both kinds (`suite_of`: another's)."""
    checkpoint = house.checkpoint(name)
    made = house.publish(ArtifactKind.SAMPLES, f"suite samples of {name}")
    house.run("generate", {"samples": made}, {"checkpoint": checkpoint}, config={"prompts": "vbench"})
    scores = publish_scores(house, checkpoint, {SMOOTH: 0.0, QUALITY: 0.0} | shifts, tooling)
    house.run("vbench", {"scores": scores}, {"samples": made}, config={"mode": "custom"})
    plain = house.publish(ArtifactKind.SAMPLES, f"samples of {name}")
    house.run("generate", {"samples": plain}, {"checkpoint": checkpoint}, config={"prompts": "shapes"})
    local = house.publish(ArtifactKind.SCORES, f"scores of {name}")
    house.run("evaluate", {"scores": local}, {"samples": plain})
    verdict = house.publish(ArtifactKind.SCORES, f"verdict on {name}", {"passed": True, "rules": 1, "refused": []})
    house.run("gate", {"scores": verdict}, {"scores": local, "suite": suite_of or scores}, config={"rules": "both"})
    return checkpoint, scores


def local_scores(house: House, checkpoint: ArtifactRecord, name: str, shift: float) -> None:
    made = house.publish(ArtifactKind.SAMPLES, f"real samples of {name}")
    house.run("generate", {"samples": made}, {"checkpoint": checkpoint}, config={"real": name})
    folder = house.staging / f"local {name}"
    folder.mkdir(parents=True)
    write_record(folder / SCORES, score_set([[0.5 + shift + n / 20] for n in range(8)]))
    (folder / "name").write_text(name)
    manifest = build_manifest(folder, ArtifactKind.SCORES, {})
    write_manifest(folder, manifest)
    output = OutputResult(
        name="scores", kind=ArtifactKind.SCORES, artifact_id=manifest.artifact_id, staging=str(folder),
        size_bytes=manifest.size_bytes, files=2,
    )  # fmt: skip
    house.run("evaluate", {"scores": house.store.publish(output)}, {"samples": made})


def channel(*, must_not_fall: Sequence[str] = (), metrics: Sequence[str] = ()) -> Settings:
    rule = NonRegression(must_not_fall=tuple(must_not_fall), metrics=tuple(metrics))
    return Settings(channels={"production": ChannelPolicy(non_regression=rule)})


def test_a_gate_that_judges_the_suite_opens_a_channel_and_is_pinned_by_how_it_was_measured(house: House) -> None:
    checkpoint, _ = measured(house, "one")
    (verdict,) = gate_verdicts(house.ledger, checkpoint.artifact_id)
    assert {"evaluate", "generate", "vbench", "vbench_generate", "rules"} == set(verdict.gate)
    assert verdict.gate["generate"] != verdict.gate["vbench_generate"]
    pin = GatePin(vbench=verdict.gate["vbench"], vbench_generate=verdict.gate["vbench_generate"])
    pinned = Settings(channels={"production": ChannelPolicy(gate=pin)})
    other = house.checkpoint("local only")
    house.judge(other, True)
    with pytest.raises(GateRefused, match="is pinned to has not judged this checkpoint"):
        promote(house.ledger, pinned, ADA, other.artifact_id, "production")
    assert promote(house.ledger, pinned, ADA, checkpoint.artifact_id, "production").entry is not None


@pytest.mark.parametrize("suite", ["vbench2", "vbench-i2v", "vbench-long"])
def test_a_suite_that_nobody_measured_is_not_taken_for_the_local_metrics(house: House, suite: str) -> None:
    one, two = house.checkpoint("one"), house.checkpoint("two")
    for name, checkpoint in (("one", one), ("two", two)):
        local_scores(house, checkpoint, name, 0.0)
    found = regression(house.ledger, NonRegression(metrics=(f"{suite}.total",)), two.artifact_id, one.artifact_id)
    assert not found.passed
    assert f"have no {suite} scores of one protocol" in found.reasons[0]


def test_a_gate_over_the_suite_scores_of_another_checkpoint_is_no_verdict(house: House) -> None:
    _, good = measured(house, "good", imaging_quality=0.1)
    borrowed, _ = measured(house, "borrowed", suite_of=good)
    assert gate_verdicts(house.ledger, borrowed.artifact_id) == []
    with pytest.raises(GateRefused, match="no gate has judged this checkpoint"):
        promote(house.ledger, Settings(), ADA, borrowed.artifact_id, "production")


def test_a_dimension_of_the_suite_that_fell_is_refused_and_an_equal_one_passes(house: House) -> None:
    policy = channel(must_not_fall=(f"vbench.{SMOOTH}",))
    first, baseline = measured(house, "first")
    promote(house.ledger, policy, ADA, first.artifact_id, "production")
    worse, _ = measured(house, "worse", motion_smoothness=-0.05)
    with pytest.raises(GateRefused, match=rf"vbench.{SMOOTH} is .* must not fall: it fell significantly"):
        promote(house.ledger, policy, ADA, worse.artifact_id, "production")
    equal, scores = measured(house, "equal")
    entry = promote(house.ledger, policy, ADA, equal.artifact_id, "production").entry
    assert entry is not None
    held = entry.facts["regression"]
    assert (held["scores"], held["baseline"]) == (scores.artifact_id, baseline.artifact_id)
    assert (held["passed"], held["dimensions"]) == (True, 2)  # Holm is over both, though one is named


def test_local_metrics_and_the_suite_are_one_family(house: House) -> None:
    checkpoints = []
    for name, shift in (("first", 0.0), ("second", 0.0), ("third", -0.1)):
        checkpoint, _ = measured(house, name, imaging_quality=0.0)
        local_scores(house, checkpoint, name, shift)
        checkpoints.append(checkpoint.artifact_id)
    policy = channel(must_not_fall=(FOLLOW, f"vbench.{QUALITY}"))
    promote(house.ledger, policy, ADA, checkpoints[0], "production")
    entry = promote(house.ledger, policy, ADA, checkpoints[1], "production").entry
    assert entry is not None
    held = entry.facts["regression"]
    assert (held["dimensions"], sorted(held["compared"]), held["notes"]) == (4, ["evaluate", "vbench"], [])
    assert held["compared"]["evaluate"] == {"scores": held["scores"], "baseline": held["baseline"]}
    assert held["compared"]["vbench"]["scores"] != held["scores"]
    with pytest.raises(GateRefused, match=f"{FOLLOW} is .* it fell significantly"):
        promote(house.ledger, policy, ADA, checkpoints[2], "production")


def test_scores_of_stand_in_weights_are_refused_by_name(house: House) -> None:
    policy = channel(must_not_fall=(f"vbench.{QUALITY}",))
    first, _ = measured(house, "first", STANDING_IN)
    promote(house.ledger, policy, ADA, first.artifact_id, "production")
    better, _ = measured(house, "better", STANDING_IN, imaging_quality=0.2)
    with pytest.raises(GateRefused, match=f"vbench.{QUALITY} cannot be compared: {STAND_IN}"):
        promote(house.ledger, policy, ADA, better.artifact_id, "production")
    with pytest.raises(GateRefused, match=f"vbench.{QUALITY} cannot be compared: {STAND_IN}"):
        promote(house.ledger, channel(), ADA, better.artifact_id, "production")  # there is nothing else to compare


def test_a_channel_that_names_a_suite_takes_nothing_that_was_not_measured_by_it(house: House) -> None:
    policy = channel(metrics=(f"vbench.{QUALITY}",))
    first, _ = measured(house, "first")
    promote(house.ledger, policy, ADA, first.artifact_id, "production")
    bare = house.checkpoint("bare")
    house.judge(bare, True)
    with pytest.raises(GateRefused, match="have no vbench scores of one protocol"):
        promote(house.ledger, policy, ADA, bare.artifact_id, "production")
    with pytest.raises(ConfigError, match="a metric that was not taken"):
        promote(house.ledger, channel(metrics=("vbench.scene",)), ADA, measured(house, "b")[0].artifact_id,
                "production")  # fmt: skip


def test_scores_that_differ_in_protocol_are_told_so_though_others_stand_on_stand_in_weights(house: House) -> None:
    first, _ = measured(house, "first")
    other, _ = measured(house, "other", STANDING_IN)
    newer = TOOLING.model_copy(update={"version": "0.1.6"})
    scores = publish_scores(house, other, {SMOOTH: 0.0, QUALITY: 0.0}, newer)
    house.run("vbench", {"scores": scores}, {"samples": house.publish(ArtifactKind.SAMPLES, "suite samples of other")})
    rule = NonRegression(must_not_fall=(f"vbench.{QUALITY}",))
    found = regression(house.ledger, rule, other.artifact_id, first.artifact_id)
    assert not found.passed
    (reason,) = found.reasons
    assert reason.endswith("have no vbench scores of one protocol: version of the suite differs")


def test_a_suite_that_only_one_of_the_two_was_measured_by_is_noted(house: House) -> None:
    first, _ = measured(house, "first")
    local_scores(house, first, "first", 0.0)
    promote(house.ledger, channel(), ADA, first.artifact_id, "production")
    bare = house.checkpoint("bare")
    house.judge(bare, True)
    local_scores(house, bare, "bare", 0.0)
    entry = promote(house.ledger, channel(), ADA, bare.artifact_id, "production").entry
    assert entry is not None
    held = entry.facts["regression"]
    assert (held["passed"], list(held["compared"])) == (True, ["evaluate"])
    (note,) = held["notes"]
    assert "have no vbench scores of one protocol" in note
    assert note.endswith(f"{bare.artifact_id[:12]} has none")
