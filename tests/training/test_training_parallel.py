"""A model whose forward several ranks share has the velocities and the gradients of the model on one rank."""

import dataclasses
import json
from pathlib import Path

import pytest
from training_bench import Bench, checkpoint, digest, make_bench
from training_helpers import TEXT
from training_nursery import Nursery

from m4v.config import ModelConfig
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig

PROBE = Path(__file__).parent / "training_parallel_probe.py"
FAST = ["both", "wan", "wan attention"]
DEEP = [
    "mm_dim", "attention", "mamba1", "no closing text", "image", "block", "selective", "wan without text", "wan image",
    "wan image attention", "wan float32", "wan autocast", "wan attention autocast",
]  # fmt: skip


def compare(nursery: Nursery, tmp_path: Path, ranks: int, cases: list[str]) -> None:
    """Rounding of float64 apart; diffusers computes some of Wan's norms in float32 whatever comes in."""
    out = tmp_path / f"{ranks}.jsonl"
    nursery.run(ranks, [str(PROBE), str(out), *cases], tmp_path / f"{ranks}.log", ["m4v.wan.columns"])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line[0] for line in lines] == cases
    for case, velocity, loss, gradient, name in lines:
        single = case in ("wan attention", "wan image attention", "wan float32")
        limits = (0.02, 0.002, 0.2) if "autocast" in case else (1e-5, 1e-6, 1e-4) if single else (1e-12, 1e-12, 1e-10)
        found = {"velocities": velocity, "loss": loss, name: gradient}
        over = [part for part, limit in zip(found, limits, strict=True) if not found[part] < limit]
        assert over == [], (case, found)


def test_a_forward_and_its_gradient_are_shared(nursery: Nursery, tmp_path: Path) -> None:
    """Columns of 1 to 5 frames in three resolutions, some of which have nothing for some ranks, through attention and
    MM-DiM; a Wan clip of 5 frames through either; 4 heads on 3 ranks."""
    compare(nursery, tmp_path, 3, FAST)


@pytest.mark.deep
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_variant_is_shared(nursery: Nursery, tmp_path: Path, ranks: int) -> None:
    compare(nursery, tmp_path, ranks, FAST[:2] + DEEP if ranks == 2 else DEEP)


TINY = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
CONFIG = TrainConfig(
    name="17f",
    steps=3,
    order=OrderConfig(frames=17, tokens_per_pack=80, packs=2, image_every=2),
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
    engine=EngineConfig(zero_stage=3, param_persistence_elements=200, live_elements=100, checkpointing="selective"),
    save_every=1,
    ema_decay=0.9,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Bench:
    made = make_bench(tmp_path_factory.mktemp("training"), InitConfig(model=TINY, text_encoder=TEXT), CONFIG)
    return dataclasses.replace(made, nursery=nursery)


def on(zero_stage: int, shared: int = 1, backend: str = "deepspeed") -> TrainConfig:
    update = {"zero_stage": zero_stage, "sequence_parallel": shared, "backend": backend}
    engine = CONFIG.engine.model_copy(update=update)
    return CONFIG.model_copy(update={"engine": engine})


def assert_same_training(bench: Bench, shared: Path, alone: Path) -> None:
    """Equal samples, and losses and norms within rounding, which the updates carry on."""
    digest(shared)
    digest(alone)
    assert bench.line(shared.parent.name) == bench.line(alone.parent.name)
    rows, expected = (
        [json.loads(line) for line in (checkpoint(work) / "metrics.jsonl").read_text().splitlines()]
        for work in (shared, alone)
    )
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row, want in zip(rows, expected, strict=True):
        assert row.keys() == want.keys()
        assert {k: row[k] for k in ("samples", "tokens", "media")} == {
            k: want[k] for k in ("samples", "tokens", "media")
        }
        for name in ("loss", "loss_high", "grad_norm"):
            assert row[name] == pytest.approx(want[name], rel=1e-6), (name, row["step"])


def test_two_ranks_that_share_train_as_one(bench: Bench) -> None:
    alone = bench.run("alone", on(3), ranks=1)
    assert_same_training(bench, bench.run("shared", on(3, shared=2), ranks=2), alone)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("zero_stage", "backend"), [*((zero, "deepspeed") for zero in range(4)), (3, "fsdp2"), (2, "fsdp2")]
)
def test_two_groups_of_two_train_as_two_ranks_and_resume_exactly(bench: Bench, zero_stage: int, backend: str) -> None:
    name = f"{backend}-{zero_stage}"
    alone = bench.run(f"two-{name}", on(zero_stage, backend=backend), ranks=2)
    config = on(zero_stage, shared=2, backend=backend)
    shared = bench.run(f"four-{name}", config, ranks=4)
    assert_same_training(bench, shared, alone)
    killed = f"killed-{name}"
    assert not (bench.run(killed, config, ranks=4, attempt=0, fault="step:1") / "result.json").exists()
    assert digest(bench.run(killed, config, ranks=4, attempt=1)) == digest(shared)
    assert bench.line(killed) == bench.line(alone.parent.name)
