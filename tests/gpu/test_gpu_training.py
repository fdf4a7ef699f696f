"""Training stages on one GPU, bf16 autocast, real kernels, deterministic mode: killed and resumed they end with the
bytes of an uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_bench import Bench, checkpoint, digest, make_bench
from training_helpers import TEXT

from m4v.config import ModelConfig
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
STEPS = 8
MODEL = ModelConfig(
    width=256, heads=4, double_blocks=1, single_blocks=3, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
CONFIG = TrainConfig(
    name="17f",
    steps=STEPS,
    order=OrderConfig(frames=17, tokens_per_pack=2000, packs=2, image_every=2),
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=3),
    engine=EngineConfig(zero_stage=3, dtype="bfloat16", param_persistence_elements=200),
    save_every=2,
    ema_decay=0.9,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    start = InitConfig(model=MODEL, text_encoder=TEXT)
    return make_bench(tmp_path_factory.mktemp("training"), start, CONFIG, device="cuda", t=3, h=32, w=48)


def with_stage(stage: int) -> TrainConfig:
    return CONFIG.model_copy(update={"engine": CONFIG.engine.model_copy(update={"zero_stage": stage})})


def losses(work: Path) -> list[str]:
    rows = [json.loads(line) for line in (checkpoint(work) / "metrics.jsonl").read_text().splitlines()]
    return [float(row["loss"]).hex() for row in rows]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_killed_and_resumed_on_the_gpu_the_bytes_are_the_same(bench: Bench, stage: int) -> None:
    config = with_stage(stage)
    straight = bench.run(f"straight-{stage}", config, ranks=1)
    whole = digest(straight)
    for attempt, fault in enumerate(("step:2", "shard:4", "half:6")):
        work = bench.run(f"killed-{stage}", config, ranks=1, attempt=attempt, fault=fault)
        assert not (work / "result.json").exists()
    last = bench.run(f"killed-{stage}", config, ranks=1, attempt=3)
    assert digest(last) == whole
    assert losses(last) == losses(straight)
    assert bench.line(f"killed-{stage}", config) == bench.line(f"straight-{stage}", config)
    found = losses(straight)
    assert len(set(found)) == STEPS
    assert all(float.fromhex(value) < 20 for value in found)
