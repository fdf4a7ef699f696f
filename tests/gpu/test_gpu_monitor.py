"""On a GPU: a step's parts by events, memory, MFU where the peak is known, and a skipped update that resumes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from training_bench import Bench, digest, make_bench
from training_helpers import TEXT

from m4v.config import ModelConfig
from training.clock import StepClock
from training.config import EngineConfig, GuardConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig
from training.hardware import device_peak, memory_in_use

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CONFIG = TrainConfig(
    name="watched",
    steps=6,
    order=OrderConfig(frames=17, tokens_per_pack=1200, packs=2, image_every=0),
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
    engine=EngineConfig(zero_stage=3, dtype="bfloat16"),
    save_every=2,
    guard=GuardConfig(not_finite="skip"),
)
MODEL = ModelConfig(width=256, heads=4, double_blocks=1, single_blocks=2, text_dim=384, pooled_dim=384, text_slots=8)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    start = InitConfig(model=MODEL, text_encoder=TEXT)
    return make_bench(tmp_path_factory.mktemp("watched"), start, CONFIG, device="cuda", t=3, h=32, w=48)


def test_parts_of_a_step_are_measured_on_the_stream() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    matrix = torch.ones(4096, 4096, device=device)
    with StepClock(device) as clock, clock.part("forward"):
        for _ in range(20):
            matrix @ matrix
        StepClock.collective(lambda: matrix @ matrix)
    timing = clock.read()
    assert timing.forward > timing.communication > 0  # a launch alone would be over at once, and both alike
    assert memory_in_use(device)["gpu_peak_bytes"] >= memory_in_use(device)["gpu_allocated_bytes"] > 0


def test_a_skipped_update_on_the_gpu_resumes_bit_exactly(bench: Bench) -> None:
    def resumed() -> Path:
        bench.run("killed", ranks=1, fault="nan:3+step:4")
        return bench.run("killed", ranks=1, attempt=1, fault="nan:3")

    with ThreadPoolExecutor(2) as pool:  # a process takes most of its time to start
        both = pool.submit(bench.run, "straight", ranks=1, fault="nan:3"), pool.submit(resumed)
    straight, killed = (found.result() for found in both)
    assert digest(killed) == digest(straight)
    assert timings_of(straight)[-1]["gpu_reserved_bytes"] > 0
    peak = device_peak(torch.device("cuda", torch.cuda.current_device()), "bfloat16")
    found = [row["mfu"] for row in timings_of(straight) if "mfu" in row]
    assert all(0 < mfu < 1 for mfu in found)
    assert len(found) == (0 if peak is None else CONFIG.steps)


def timings_of(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "timings.jsonl").read_text().splitlines()]
