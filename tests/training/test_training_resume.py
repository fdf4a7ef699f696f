"""Kill and resume with real ranks: final bytes and consumed samples equal those of torchrun's uninterrupted run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from training_bench import Bench, checkpoint, digest, make_bench
from training_engine_probe import CROSSED, STAGES
from training_helpers import TEXT, Clip, write_dataset
from training_nursery import Nursery

from m4v.config import ModelConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ExitClass
from m4v.core.shard_index import INDEX, read_index
from m4v.core.stage import read_exits
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig
from training.exposure import ExposureState, order_of

STEPS = 7
FAULTS = (
    "step:0", "step:1", "copy:0", "half:2", "file:2", "shard:2", "commit:2", "copy:1", "retain:6", "step:5", "commit:7"
)  # fmt: skip
TINY = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
CONFIG = TrainConfig(
    name="17f",
    steps=STEPS,
    order=OrderConfig(frames=17, tokens_per_pack=80, packs=2, image_every=2),
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=3),
    engine=EngineConfig(zero_stage=3, param_persistence_elements=200, live_elements=100, checkpointing="selective"),
    save_every=2,
    ema_decay=0.9,
)


def on_fsdp2(zero_stage: int = 3) -> TrainConfig:
    engine = CONFIG.engine.model_copy(update={"backend": "fsdp2", "zero_stage": zero_stage})
    return CONFIG.model_copy(update={"engine": engine})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("training"), InitConfig(model=TINY, text_encoder=TEXT), CONFIG)
    return dataclasses.replace(made, nursery=nursery)


@pytest.fixture(scope="module")
def straight(bench: Bench) -> Path:
    """The uninterrupted run on two ranks of torchrun."""
    return dataclasses.replace(bench, nursery=None).run("straight")


@pytest.mark.deep  # the same is asked of every stage of a whole pipeline by tests/e2e/test_micro_pipeline.py
def test_debug_log_equals_recomputed_exposure(bench: Bench, straight: Path) -> None:
    state = ExposureState.model_validate_json((checkpoint(straight) / "training.json").read_bytes())
    order = order_of(state, read_index(bench.root / "dataset" / INDEX))
    expected = [sorted((p.place, *d) for p in order.packs(s) for d in p.draws) for s in range(STEPS)]
    assert bench.line("straight") == expected
    counts: dict[str, int] = {}
    for step in expected:
        for _, sample, _ in step:
            counts[sample] = counts.get(sample, 0) + 1
    assert order.counts(state.cursor) == counts


def test_metrics_have_every_step_once_and_no_timings(straight: Path) -> None:
    rows = [json.loads(line) for line in (checkpoint(straight) / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(STEPS))
    assert [r["media"] for r in rows] == ["video", "video", "image"] * 2 + ["video"]
    assert set(rows[0]) == {
        "step", "loss", "grad_norm", "lr", "tokens", "samples", "media", "loss_low", "loss_mid", "loss_high",
        "loss_t00", "loss_t20", "loss_t40", "loss_t60", "loss_t80",
    }  # fmt: skip
    assert rows[0]["lr"] == pytest.approx(1e-6)
    assert rows[3]["lr"] == 1e-3


def final_shards(bench: Bench, name: str) -> dict[str, str]:
    """SHA-256 of every rank's weights, moments and averages after the last step."""
    (folder,) = (bench.root / name / "state" / "saves").glob(f"{STEPS:010d}-*")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}


def kill_from_outside(bench: Bench, name: str, attempt: int, lines: int) -> None:
    """Start a run and SIGKILL agent and ranks together once rank 0 has logged so many steps; its last save never ends,
    so that it cannot be over before."""
    work = bench.write(name, CONFIG, 2, attempt)
    agent = bench.start(name, 2, [work], f"slow:{STEPS}")
    log = bench.root / name / "log" / f"{CONFIG.name}.0.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text().count("\n") >= lines) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in [psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # ranks go with their agent
            process.kill()
    agent.wait()
    assert not (work / "result.json").exists()


def drain(bench: Bench, name: str, attempt: int) -> None:
    """A run that is asked to stop before it starts: it takes one step, saves it and leaves with class 40."""
    work = bench.write(name, CONFIG, 2, attempt)
    (work / "drain").touch()
    bench.start(name, 2, [work]).wait()
    assert [e.exit_class for e in read_exits(work)] == [ExitClass.DRAINED] * 2


def test_killed_and_drained_then_resumed_is_bit_equal(bench: Bench, straight: Path) -> None:
    """One run, killed from outside, in the middle of a rank's file, between files and manifest, and while the
    checkpoint is written; every kill is of all ranks at once."""
    kill_from_outside(bench, "killed", 0, lines=3)
    drain(bench, "killed", 1)
    for attempt, fault in enumerate(("half:4", "shard:6", "export"), start=2):
        work = bench.run("killed", attempt=attempt, fault=fault)
        assert not (work / "result.json").exists(), fault
    last = bench.run("killed", attempt=5)
    assert digest(last) == digest(straight)
    assert bench.line("killed") == bench.line("straight")
    assert final_shards(bench, "killed") == final_shards(bench, "straight")
    assert len(final_shards(bench, "killed")) == 2


@pytest.mark.deep
@pytest.mark.parametrize(
    "fault",
    [
        "step:0",
        "step:1",
        "copy:0",
        "half:2",
        "file:2",
        "shard:2",
        "commit:2",
        "copy:1",
        "retain:6",
        "step:5",
        "commit:7",
    ],
)
def test_a_kill_at_any_point_is_bit_equal(bench: Bench, straight: Path, fault: str) -> None:
    name = f"deep-{fault}"
    bench.run(name, fault=fault)
    assert digest(bench.run(name, attempt=1)) == digest(straight)
    assert bench.line(name) == bench.line("straight")


@pytest.mark.deep
@pytest.mark.parametrize("stage", [0, 1, 2])  # 3 is that of all other tests
def test_a_kill_during_a_save_is_bit_equal_in_every_zero_stage(bench: Bench, stage: int) -> None:
    config = CONFIG.model_copy(update={"engine": CONFIG.engine.model_copy(update={"zero_stage": stage})})
    names = f"whole-{stage}", f"cut-{stage}"
    expected = digest(bench.run(names[0], config))
    bench.run(names[1], config, fault="file:4")
    assert digest(bench.run(names[1], config, attempt=1)) == expected
    assert final_shards(bench, names[1]) == final_shards(bench, names[0])
    assert bench.line(names[1]) == bench.line(names[0])


@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.deep)])
def test_fsdp2_resumes_bit_equal_and_deepspeed_goes_on_from_its_saves(bench: Bench, straight: Path, stage: int) -> None:
    """Killed between all files of a save and its manifest; the save before it also loads on one rank of DeepSpeed."""
    config, cut, whole, moved = on_fsdp2(stage), f"fsdp2-cut-{stage}", f"fsdp2-whole-{stage}", f"fsdp2-moved-{stage}"
    bench.run(cut, config, fault="shard:4")
    shutil.copytree(bench.root / cut, bench.root / moved)
    assert digest(bench.run(cut, config, attempt=1)) == digest(bench.run(whole, config))
    assert final_shards(bench, cut) == final_shards(bench, whole)
    assert_same_within_rounding(bench, bench.run(moved, ranks=1, attempt=1), straight, (cut, whole, moved))


@pytest.mark.deep
@pytest.mark.parametrize("ranks", [1, 2])
def test_fsdp2_goes_on_from_saves_of_deepspeed(bench: Bench, straight: Path, ranks: int) -> None:
    name = f"to-fsdp2-{ranks}"
    bench.run(name, fault="step:4")
    assert_same_within_rounding(bench, bench.run(name, on_fsdp2(), ranks=ranks, attempt=1), straight, (name,))


@pytest.mark.deep
def test_random_kills_are_bit_equal(bench: Bench, straight: Path) -> None:
    generator = random.Random(11)
    for attempt in range(6):
        kill_from_outside(bench, "random", attempt, lines=generator.randrange(1, 8) + attempt)
        time.sleep(generator.random() * 0.05)
    assert digest(bench.run("random", attempt=6)) == digest(straight)
    assert bench.line("random") == bench.line("straight")


@pytest.mark.deep
def test_a_drain_whose_save_takes_too_long_leaves_in_time_with_the_last_save(bench: Bench, straight: Path) -> None:
    """Exit class 40 at the deadline, the reason says which save stands, and the run goes on from there."""
    config = CONFIG.model_copy(update={"drain_deadline_s": 3.0})
    bench.run("late", config, fault="commit:4")
    work = bench.write("late", config, 2, 1)
    (work / "drain").touch()
    bench.start("late", 2, [work], "slow:5").wait()
    exits = read_exits(work)
    assert [e.exit_class for e in exits] == [ExitClass.DRAINED] * 2
    assert all("not over after 3 s: the save of step 4 stands" in e.message for e in exits)
    rows = [json.loads(line) for line in (work / "saves.jsonl").read_text().splitlines()]
    assert {"event": "emergency_save_abandoned", "step": 5, "stands": 4}.items() <= rows[-1].items()
    assert digest(bench.run("late", attempt=2)) == digest(straight)


def assert_same_within_rounding(bench: Bench, work: Path, straight: Path, names: tuple[str, ...]) -> None:
    """The run has the weights of the uninterrupted one, and all runs of these names the samples."""
    for name in names:
        assert bench.line(name) == bench.line("straight")
    ours, theirs = (load_file(checkpoint(w) / "model.safetensors") for w in (work, straight))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=2e-5)


def test_world_size_may_change_between_attempts(bench: Bench, straight: Path) -> None:
    """2 ranks, then 1: same samples, weights within rounding, and the record says so."""
    bench.run("resized", attempt=0, fault="step:4")
    work = bench.run("resized", ranks=1, attempt=1)
    metrics = json.loads((work / "result.json").read_text())["metrics"]
    assert metrics["reproducibility"] == "sample-exact"
    assert metrics["attempts"] == [[0, 2], [4, 1]]
    assert_same_within_rounding(bench, work, straight, ("resized",))


def test_a_loss_that_is_not_finite_stops_the_stage_with_the_samples(bench: Bench, tmp_path: Path) -> None:
    """The step is not taken and nothing is skipped: a person must decide (exit class 50)."""
    dataset = write_dataset(tmp_path / "dataset", [Clip(0, 3), Clip(1, 3, broken=True)])
    inputs = [("dataset", ArtifactKind.DATASET, dataset, tmp_path / "dataset"), bench.inputs[1]]
    work = dataclasses.replace(bench, root=tmp_path, inputs=inputs).run("broken", ranks=1)
    (record,) = read_exits(work)
    bad = {r["source_id"]: r["sample_id"] for r in read_index(tmp_path / "dataset" / INDEX).to_pylist()}["1"]
    assert record.exit_class == ExitClass.NEEDS_HUMAN
    assert "loss is not finite at step 0" in record.message
    assert bad in record.message
    assert not (tmp_path / "broken" / "state" / "saves").exists()


@pytest.mark.deep
def test_loss_falls_on_a_small_set(bench: Bench) -> None:
    config = CONFIG.model_copy(
        update={
            "name": "overfit", "steps": 40, "save_every": 100, "order": OrderConfig(frames=9, tokens_per_pack=80),
            "optimizer": OptimizerConfig(lr=8e-3, warmup_steps=4, decay="cosine"),
        }
    )  # fmt: skip
    work = bench.run("overfit", config, ranks=1)
    rows = [json.loads(line) for line in (checkpoint(work) / "metrics.jsonl").read_text().splitlines()]
    videos = [r["loss"] for r in rows if r["media"] == "video"]
    assert sum(videos[-8:]) < 0.75 * sum(videos[:8])
    metrics = json.loads((work / "result.json").read_text())["metrics"]
    assert metrics["tokens_per_second"] > 0
    assert metrics["steps_this_attempt"] == 40


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.deep)])
def test_zero_stages_and_fsdp2_agree_and_resume_bit_equal(nursery: Nursery, tmp_path: Path, ranks: int) -> None:
    nursery.run(
        ranks, [str(Path(__file__).parent / "training_engine_probe.py"), str(tmp_path)], tmp_path / "output.log"
    )
    expected = load_file(tmp_path / "stage0.straight.safetensors")
    for stage in STAGES:
        straight, resumed = (load_file(tmp_path / f"stage{stage}.{k}.safetensors") for k in ("straight", "resumed"))
        assert straight["norms"].min() > 0.05  # clipped
        crossed = load_file(tmp_path / f"stage{stage}.crossed.safetensors") if stage in CROSSED else straight
        for name, value in expected.items():
            assert torch.equal(straight[name], resumed[name]), (stage, name)
            torch.testing.assert_close(straight[name], value, rtol=2e-5, atol=1e-7)
            torch.testing.assert_close(crossed[name], value, rtol=2e-5, atol=1e-7)
