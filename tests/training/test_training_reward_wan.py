"""Reward of whole videos on a tiny Wan model: right gradient, what is scored, and how the frames are averaged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training_reward import PlainEngine, Redness
from test_training_wan import ORDER, TINY
from training_helpers import clips, write_dataset

from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.core.shard_index import INDEX, read_index
from m4v.wan.columns import WanColumns
from m4v.wan.config import WanCheckpointConfig, WanFlowConfig
from m4v.wan.initialise import build_wan
from training.config import RewardTermConfig
from training.families import family_of
from training.loader import Batch, Collator, SampleStore, Text
from training.order import DataOrder
from training.reward.rewards import Rewards, WeightedScore
from training.reward.whole_video import WholeVideoObjective
from training.samples import Samples

FAMILY = family_of(WanCheckpointConfig(model=TINY, flow=WanFlowConfig(shift=1.0)))
ALL = (0.0, 1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "dataset"
    write_dataset(folder, clips(5, 3))
    return folder


@pytest.fixture(scope="module")
def order(dataset: Path) -> DataOrder:
    return DataOrder(Samples.of_index(read_index(dataset / INDEX)), ORDER, 5, "reward")


def batch_of(dataset: Path, order: DataOrder, text_drop: float = 0.0) -> Batch:
    index, null = read_index(dataset / INDEX), load_file(dataset / "null_text.safetensors")
    collate = Collator(
        store=SampleStore(dataset.joinpath, index), packing=FAMILY,
        null_text=Text(*(null[key][0] for key in Text._fields)), seed=5, stage="reward", text_drop=text_drop,
        with_captions=True,
    )  # fmt: skip
    return collate(order.pack(0, 0))


def objective(window: tuple[float, float] = ALL, weight: float = 3.0) -> tuple[WholeVideoObjective, Redness]:
    scorer = Redness()
    rewards = Rewards([WeightedScore(scorer, 1.0)])
    config = RewardTermConfig(weight=weight, noise_window=window)
    return WholeVideoObjective(config, FAMILY, open_codec(DctCodecConfig()), rewards), scorer


def engine(seed: int = 1) -> PlainEngine:
    model = build_wan(TINY, seed)
    with torch.no_grad():  # the published initialisation has a zero output layer: nothing would reach the blocks
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return PlainEngine(WanColumns.of(model), lr=3e-3)


def test_gradient_of_the_mean_over_all_frames_equals_finite_differences(dataset: Path, order: DataOrder) -> None:
    batch, size, made = batch_of(dataset, order), order.step_size(0), engine()
    goal, scorer = objective()
    parameter = max(made.model.parameters(), key=lambda p: p.ndim * 1000 + p.numel())

    def value() -> float:
        terms = goal(made, batch, size)  # type: ignore[arg-type]
        total, count = terms.logged["reward"]
        assert count == len(batch.captions)
        return (terms.flow - 3.0 * total) / size.samples

    goal(made, batch, size).loss.div(size.samples).backward()  # type: ignore[arg-type]
    frames = 17
    assert scorer.looks == len(batch.captions) * math.ceil(frames / 8), "every frame, eight at a time"
    assert parameter.grad is not None
    direction = parameter.grad / parameter.grad.norm() * 0.05
    expected = float((parameter.grad * direction).sum())
    with torch.no_grad():
        parameter.add_(direction)
        above = value()
        parameter.sub_(2 * direction)
        below = value()
    assert (above - below) / 2 == pytest.approx(expected, rel=3e-2)


def test_dropped_captions_and_levels_outside_the_window_are_not_scored(dataset: Path, order: DataOrder) -> None:
    batch, size, made = batch_of(dataset, order), order.step_size(0), engine()
    low, high = sorted(batch.columns[0].sigma.tolist())[:2]
    goal, _ = objective(window=(low, (low + high) / 2))
    assert goal(made, batch, size).logged["reward"][1] == 1  # type: ignore[arg-type]
    goal, _ = objective()
    terms = goal(made, batch_of(dataset, order, text_drop=1.0), size)  # type: ignore[arg-type]
    assert "reward" not in terms.logged
    assert float(terms.loss.detach()) == terms.flow
    logged = goal(made, batch, size).logged  # type: ignore[arg-type]
    assert set(logged) <= set(goal.names)
    assert logged["frame_similarity"][1] == len(batch.captions)
    assert logged["frame_difference"][0] > 0


def test_a_probe_scores_as_a_step_does(dataset: Path, order: DataOrder) -> None:
    batch, made = batch_of(dataset, order), engine()
    goal, _ = objective()
    total, count = goal(made, batch, order.step_size(0)).logged["score_redness"]  # type: ignore[arg-type]
    found = goal.scores(made, batch)
    assert set(found) == set(goal.scorers) == {"score_redness"}
    assert len(found["score_redness"]) == count
    assert float(found["score_redness"].double().sum()) == pytest.approx(total, rel=1e-6)
    assert goal.scores(made, batch_of(dataset, order, text_drop=1.0)) == {}


def test_a_few_steps_raise_the_reward(dataset: Path, order: DataOrder) -> None:
    batch, size, made = batch_of(dataset, order), order.step_size(0), engine()
    goal, _ = objective(weight=1.0)
    found = []
    for _ in range(8):
        terms = goal(made, batch, size)  # type: ignore[arg-type]
        total, count = terms.logged["reward"]
        found.append(total / count)
        made.backward(terms.loss / size.samples)
        made.step()
    assert found[-1] > found[0]
