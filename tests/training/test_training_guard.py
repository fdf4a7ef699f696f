"""Losses that go wrong: what the guard decides, and that a stage with skips and roll-backs resumes bit-exactly."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from training_bench import Bench, checkpoint, digest, make_bench
from training_helpers import TEXT
from training_nursery import Nursery

from m4v.config import ModelConfig, SamplerConfig
from m4v.core.errors import ExitClass
from m4v.core.shard_index import INDEX, read_index
from m4v.core.stage import read_exits
from m4v.core.storage import Storage
from m4v.video_io import read_mp4
from training.config import (
    EngineConfig,
    GuardConfig,
    InitConfig,
    OptimizerConfig,
    OrderConfig,
    TrainConfig,
    ValidationConfig,
)
from training.exposure import ExposureState, order_of, seen, steps_that_saw
from training.guard import Guard, RollBack, RollBacks, Verdict, steps_to_leave_out
from training.split import held_out_samples, is_held_out

STEPS, NAN, SPIKE = 9, 2, 7
HELD_OUT = 250_000
CONFIG = TrainConfig(
    name="guarded",
    steps=STEPS,
    order=OrderConfig(frames=17, tokens_per_pack=80, packs=2, image_every=0, held_out=HELD_OUT),
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
    engine=EngineConfig(zero_stage=1),
    save_every=3,
    ema_decay=0.9,
    guard=GuardConfig(not_finite="skip", spike="roll_back", spike_factor=50, settled=2, rewind=2),
    validation=ValidationConfig(
        every=4, samples=2, videos=1, sampler=SamplerConfig(steps_first=(1, 1, 1), steps_later=(1, 1, 1))
    ),
)
TINY = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
FAULT = f"nan:{NAN}+spike:{SPIKE}+drain:4"


def row(step: int, loss: float = 1.0, norm: float = 0.5, **more: object) -> dict[str, object]:
    return {"step": step, "loss": loss, "grad_norm": norm, "media": "video", **more}


def test_a_spike_is_told_from_the_median_of_its_media() -> None:
    config = GuardConfig(spike="skip", spike_factor=3, norm_factor=10, settled=3, window=4)
    guard = Guard(config, [row(n, loss) for n, loss in enumerate((9.0, 1.0, 1.1, 0.9, 1.0))])
    assert guard.judge("video", 2.9, 0.5) == Verdict()
    assert guard.judge("video", 3.1, 0.5) == Verdict("skip", "loss 3.1 is 3.1 times the usual 1")
    assert guard.judge("video", 1.0, 6.0).reason == "gradient norm 6 is 12.0 times the usual 0.5"
    assert guard.judge("image", 99.0, 99.0) == Verdict()  # nothing to compare with yet


def test_not_finite_is_judged_without_a_history_and_a_limit_calls_a_person() -> None:
    guard = Guard(GuardConfig(not_finite="skip", most=1))
    assert guard.judge("video", math.nan, math.nan) == Verdict("skip", "loss is not finite")
    assert guard.judge("video", 1.0, math.inf) == Verdict("skip", "gradient is not finite")
    assert guard.judge("video", None, 0.0).action == "skip"
    guard.add(row(0, skipped="loss is not finite"))
    assert guard.judge("video", math.nan, 0.0).action == "stop"
    assert "guard.most" in guard.judge("video", math.nan, 0.0).reason
    assert Guard(GuardConfig()).judge("video", math.nan, 0.0).action == "stop"


def test_a_recorded_roll_back_names_its_steps(tmp_path: Path) -> None:
    roll_backs = RollBacks(Storage(str(tmp_path)))
    assert roll_backs.left_out() == {}
    roll_backs.record(RollBack(step=7, left_out=steps_to_leave_out(7, 6, 5), reason="loss", attempt_id="a"))
    assert roll_backs.left_out() == dict.fromkeys((6, 7), "left out by the roll-back at step 7: loss")
    assert steps_to_leave_out(7, 0, 3) == (5, 6, 7)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("guarded"), InitConfig(model=TINY, text_encoder=TEXT), CONFIG)
    return dataclasses.replace(made, nursery=nursery)


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Path]:
    """In one process: the stage in one go, and drained in its middle and resumed."""
    works = {
        "straight": bench.write("straight", CONFIG, 1, 1),
        "drained": bench.write("again", CONFIG, 1, 0),
        "resumed": bench.write("again", CONFIG, 1, 1),
    }
    bench.start(".", 1, [*works.values()], FAULT).wait()
    return works


def rows_of(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (checkpoint(work) / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_with_a_skip_and_a_roll_back_resumes_bit_exactly(runs: dict[str, Path]) -> None:
    assert [e.exit_class for e in read_exits(runs["drained"])] == [ExitClass.DRAINED]
    assert digest(runs["resumed"]) == digest(runs["straight"])


def test_every_step_has_one_row_and_the_skipped_ones_say_why(runs: dict[str, Path]) -> None:
    rows = rows_of(runs["straight"])
    assert [r["step"] for r in rows] == list(range(STEPS))
    reasons = {r["step"]: str(r["skipped"]) for r in rows if "skipped" in r}
    assert list(reasons) == [NAN, SPIKE - 1, SPIKE]
    assert reasons[NAN] == "loss is not finite"
    assert rows[NAN]["loss"] is None
    assert reasons[SPIKE].startswith(f"left out by the roll-back at step {SPIKE}: loss ")
    table = pq.read_table(checkpoint(runs["straight"]) / "metrics.parquet")
    assert table["loss"].to_pylist() == [r["loss"] for r in rows]
    assert table["skipped"].to_pylist() == [r.get("skipped") for r in rows]


def test_live_rows_of_the_last_attempt_are_those_of_the_checkpoint(runs: dict[str, Path]) -> None:
    for work in (runs["straight"], runs["resumed"]):
        live = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
        assert live == rows_of(work)


def test_exposure_leaves_out_skipped_steps_and_held_out_clips(bench: Bench, runs: dict[str, Path]) -> None:
    state = ExposureState.model_validate_json((checkpoint(runs["straight"]) / "training.json").read_bytes())
    index = read_index(bench.root / "dataset" / INDEX)
    held = held_out_samples(index, HELD_OUT)
    assert state.skipped == (NAN, SPIKE - 1, SPIKE)
    assert held == {r["sample_id"] for r in index.to_pylist() if is_held_out(r["clip_id"], HELD_OUT)}
    drawn = {d.sample_id for s in range(STEPS) for p in order_of(state, index).packs(s) for d in p.draws}
    assert held & drawn, "the order must draw a held-out clip, or nothing is shown"
    counts: dict[str, int] = {}
    for step in set(range(STEPS)) - set(state.skipped):
        for pack in order_of(state, index).packs(step):
            for sample in set(pack.samples) - held:
                counts[sample] = counts.get(sample, 0) + pack.samples.count(sample)
    assert seen(state, index) == counts
    for sample in drawn:
        steps = [place.step for place in steps_that_saw(state, index, sample)]
        assert len(steps) == counts.get(sample, 0)
        assert not set(steps) & set(state.skipped)


def test_debug_log_has_what_was_learned_from(bench: Bench, runs: dict[str, Path]) -> None:
    """The log of both runs' last lines: no held-out clip, nothing of a skipped step."""
    state = ExposureState.model_validate_json((checkpoint(runs["straight"]) / "training.json").read_bytes())
    index = read_index(bench.root / "dataset" / INDEX)
    held = held_out_samples(index, HELD_OUT)
    order = order_of(state, index)
    expected = [
        sorted((p.place, *d) for p in order.packs(s) for d in p.draws if d.sample_id not in held)
        if s not in state.skipped
        else []
        for s in range(STEPS)
    ]
    assert bench.line(".") == expected


def test_validation_is_measured_when_due_and_its_videos_are_in_the_checkpoint(runs: dict[str, Path]) -> None:
    rows = rows_of(runs["straight"])
    assert [r["step"] for r in rows if "validation_loss" in r] == [3, 7, 8]
    for r in (rows[3], rows[8]):
        parts = [r[f"validation_loss_{name}"] for name in ("low", "mid", "high")]
        assert all(isinstance(value, float) and value > 0 for value in (r["validation_loss"], *parts))
    videos = sorted(p.name for p in (checkpoint(runs["straight"]) / "validation").iterdir())
    assert videos == [f"step-0000000{n}-00.mp4" for n in (4, 8, 9)]
    frames, _ = read_mp4(checkpoint(runs["straight"]) / "validation" / videos[0])
    assert frames.shape == (17, 64, 64, 3)


@pytest.mark.deep
@pytest.mark.parametrize("kill", ["shard:6", "step:4", "commit:6"])
def test_two_sharded_ranks_agree_and_resume_after_a_kill(bench: Bench, kill: str) -> None:
    config = CONFIG.model_copy(
        update={"engine": EngineConfig(zero_stage=3, param_persistence_elements=200, live_elements=100)}
    )
    wrong = f"nan:{NAN}+spike:{SPIKE}"
    straight = bench.run(f"two-{kill}", config, fault=wrong)
    bench.run(f"two-killed-{kill}", config, fault=f"{wrong}+{kill}")
    resumed = bench.run(f"two-killed-{kill}", config, attempt=1, fault=wrong)
    assert digest(resumed) == digest(straight)
    assert [r["step"] for r in rows_of(resumed) if "skipped" in r] == [NAN, SPIKE - 1, SPIKE]
