"""Training stages on one GPU, bf16 autocast, real kernels, deterministic mode: killed and resumed they end with the
bytes of an uninterrupted run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from training_bench import checkpoint, digest, make_bench
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
    engine=EngineConfig(
        zero_stage=3, dtype="bfloat16", checkpointing="selective", param_persistence_elements=200, live_elements=100
    ),
    save_every=2,
    ema_decay=0.9,
)


# Between steps and in the middle of a file for the stage that the product trains with; before a manifest, too.
FAULTS = {3: ("step:2", "half:6"), 2: ("shard:4",), 1: ("half:6",), 0: ("step:5",)}


def with_stage(stage: int) -> TrainConfig:
    engine = CONFIG.engine.model_copy(update={"zero_stage": stage})
    return CONFIG.model_copy(update={"engine": engine})


class Runs:
    """What the tests look at: each ZeRO stage straight, and killed as `FAULTS` says and resumed.

    A process takes most of its time to start, so all lines run side by side on the GPU. None runs two stages: ZeRO-3
    leaves its own `linear` behind in torch, and another stage's gradients would then differ by a rounding.
    """

    def __init__(self, root: Path) -> None:
        self.bench = make_bench(
            root, InitConfig(model=MODEL, text_encoder=TEXT), CONFIG, device="cuda", t=3, h=32, w=48
        )
        with ThreadPoolExecutor(2 * len(FAULTS)) as pool:
            straight = {stage: pool.submit(self.attempt, "straight", stage, 0) for stage in FAULTS}
            killed = {stage: pool.submit(self.line, stage) for stage in FAULTS}
        self.straight = {stage: found.result() for stage, found in straight.items()}
        self.killed = {stage: found.result() for stage, found in killed.items()}

    def attempt(self, name: str, stage: int, attempt: int, fault: str = "") -> Path:
        return self.bench.run(f"{name}-{stage}", with_stage(stage), 1, attempt, fault)

    def line(self, stage: int) -> list[Path]:
        """The killed attempts of a stage, and the one that ends it."""
        return [self.attempt("killed", stage, n, fault) for n, fault in enumerate((*FAULTS[stage], ""))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("training"))


def losses(work: Path) -> list[str]:
    rows = [json.loads(line) for line in (checkpoint(work) / "metrics.jsonl").read_text().splitlines()]
    return [float(row["loss"]).hex() for row in rows]


@pytest.mark.parametrize("stage", FAULTS)
def test_killed_and_resumed_on_the_gpu_the_bytes_are_the_same(runs: Runs, stage: int) -> None:
    straight, resumed = runs.straight[stage], runs.killed[stage][-1]
    assert digest(resumed) == digest(straight)
    assert losses(resumed) == losses(straight)
    config = with_stage(stage)
    assert runs.bench.line(f"killed-{stage}", config) == runs.bench.line(f"straight-{stage}", config)
    found = losses(straight)
    assert len(set(found)) == STEPS
    assert all(float.fromhex(value) < 20 for value in found)


@pytest.mark.parametrize("stage", FAULTS)
def test_every_kill_came_between_first_step_and_end(runs: Runs, stage: int) -> None:
    for work in runs.killed[stage][:-1]:
        assert (work / "timings.jsonl").read_text(), (work / "output.log").read_text()[-3000:]
        assert not (work / "result.json").exists()
