"""Recorded forwards: a sampler with them makes the same bits, and they end with the tables that they read."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from recorded_forwards import record

from m4v.config import ModelConfig, SamplerConfig, ScheduleConfig
from m4v.flow.graphs import KEPT, GraphedModel, Recorded
from m4v.flow.sampler import stream
from m4v.flow.schedule import PyramidSchedule
from m4v.kernels.selection import use_kernels
from m4v.model import M4VTransformer, build_model
from m4v.model.layout import forget_layouts, layouts_age

SIZES = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=2, latent_channels=4, text_dim=6, pooled_dim=5, text_slots=3,
    chunk_size=8,
)  # fmt: skip
STEPS = SamplerConfig(
    steps_first=(3, 3, 4), steps_later=(3, 3, 3), guidance_first=3.0, guidance_later=2.0, self_guidance=0.5,
    self_guidance_from=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> M4VTransformer:
    found = build_model(SIZES, seed=0)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.parameters():  # the output layers start at zero
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return found.eval()


def features(seed: int) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        embedding=torch.randn(1, 3, 6, generator=draw), mask=torch.tensor([[1, 1, 0]]),
        pooled=torch.randn(1, 5, generator=draw),
    )  # fmt: skip


def sampled(model: object, seed: int = 5) -> Tensor:
    """Four frames; tables are let go of behind each, as `CheckpointSampler` does."""
    frames = []
    schedule = PyramidSchedule(ScheduleConfig())
    for frame in stream(model, schedule, STEPS, features(1), features(2), (4, 8, 16), [seed], channels=4):  # type: ignore[arg-type]
        forget_layouts()
        frames.append(frame)
    return torch.cat(frames, dim=2)


def test_replayed_forwards_give_the_same_bits(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, record)
    assert torch.equal(sampled(graphed), sampled(model))
    # Of each shape the first is run and the rest are replayed: 3 stages of 4 frames, and high guidance in two frames.
    assert graphed.captured == graphed.plain == 3 * 4 + 2
    assert graphed.replayed + graphed.plain == (3 + 3 + 4) + 3 * 9 + 2 * 3
    assert graphed.refused is None
    assert torch.equal(sampled(graphed, seed=6), sampled(model, seed=6)), "another video of the same shapes"


def test_results_are_the_callers_own(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, record)
    given = [call_of(seed) for seed in range(5)]
    with torch.no_grad():
        found = [graphed(**inputs)[0] for inputs in given]
        expected = [model(**inputs)[0] for inputs in given]
    assert graphed.replayed == 4
    for mine, exact in zip(found, expected, strict=True):  # a later replay has not changed an earlier result
        assert torch.equal(mine, exact)


def call_of(seed: int, width: int = 8) -> dict[str, object]:
    draw = torch.Generator().manual_seed(seed)
    text = features(seed)
    return {
        "columns": [[torch.randn(1, 4, 1, 4, width, generator=draw), torch.randn(1, 4, 1, 4, width, generator=draw)]],
        "timesteps": torch.rand(1, generator=draw) * 1000, "text": text.embedding, "text_mask": text.mask,
        "pooled": text.pooled, "stages": [0],
    }  # fmt: skip


@torch.no_grad()
def test_graphs_end_with_their_tables(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, record)
    for _ in range(3):
        graphed(**call_of(1))
    assert (graphed.plain, graphed.captured, graphed.replayed) == (1, 1, 2)
    forget_layouts()
    for _ in range(2):
        graphed(**call_of(1))
    assert (graphed.plain, graphed.captured, graphed.replayed) == (2, 2, 3)


@torch.no_grad()
def test_few_shapes_are_kept(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, record)
    for width in range(4, 4 + 4 * (KEPT + 1), 4):
        for _ in range(2):
            graphed(**call_of(1, width))
    assert graphed.captured == KEPT + 1
    graphed(**call_of(1, 4))  # the oldest is gone
    graphed(**call_of(1, 4 + 4 * KEPT))
    assert (graphed.plain, graphed.replayed) == (KEPT + 2, KEPT + 2)


@torch.no_grad()
def test_another_choice_of_kernels_is_another_graph(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, record)
    for _ in range(2):
        graphed(**call_of(1))
    with use_kernels(scan="torch", attention="dense", glue="torch"):
        graphed(**call_of(1))
    with torch.autocast("cpu", torch.bfloat16):
        graphed(**call_of(1))
    assert (graphed.plain, graphed.captured) == (3, 1)
    graphed(**call_of(1))
    assert (graphed.captured, graphed.replayed) == (1, 2)


def test_what_is_large_or_learns_is_run(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, record, most_tokens=2 * 4 * 2 + 2)  # one token less than there are
    with torch.no_grad():
        for _ in range(3):
            graphed(**call_of(1))
    assert (graphed.plain, graphed.captured) == (3, 0)
    graphed = GraphedModel(model, record)
    for _ in range(3):
        assert graphed(**call_of(1))[0].requires_grad
    assert (graphed.plain, graphed.captured) == (3, 0)


@torch.no_grad()
def test_a_failure_is_told_once_and_forwards_go_on(model: M4VTransformer, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(run: object) -> Recorded:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be …")

    graphed, age = GraphedModel(model, refuse), layouts_age()
    found = [graphed(**call_of(1))[0] for _ in range(4)]
    assert all(torch.equal(u, model(**call_of(1))[0]) for u in found)
    assert (graphed.plain, graphed.captured, graphed.replayed) == (4, 0, 0)
    assert graphed.refused == "operation not permitted when stream is capturing"
    assert layouts_age() == age + 1, "tables that were made meanwhile are nowhere any more"
    assert [r.getMessage() for r in caplog.records] == [
        "forwards are launched one kernel at a time, since recording one failed: " + graphed.refused
    ]
