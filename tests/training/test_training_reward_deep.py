"""Deep: reward steps with the packaged scorer against the same steps without it, on clips that neither trained on."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_training_reward import ORDER, PlainEngine, batches, model
from torch import nn
from training_helpers import clips, write_dataset

from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.config import ScheduleConfig
from m4v.core.shard_index import INDEX, read_index
from m4v.flow.schedule import PyramidSchedule
from training.config import RewardTermConfig
from training.exposure import rows_of
from training.loader import Batch
from training.objective import FlowObjective
from training.order import DataOrder
from training.reward.objective import RewardObjective
from training.reward.rewards import Rewards, open_rewards
from training.reward.watch import Watch
from training.reward.watch_config import WatchConfig

pytestmark = pytest.mark.deep
WARM, STEPS, SAVES, TRAINED, HELD_OUT = 150, 48, 6, 12, 16
WEIGHT, LR = 3.0, 5e-4  # the paper's 0.1 and 1e-5 move the score by less than can be told apart in so few steps


@pytest.fixture(scope="module")
def rewards() -> Rewards:
    config = RewardTermConfig()
    return open_rewards(config.scorers, (), {})


def data_of(folder: Path, first: int, videos: int, steps: int) -> tuple[list[Batch], DataOrder]:
    """Batches of clips that no other call has: their numbers begin at `first`."""
    made = [clip for clip in clips(videos=first + videos, images=0) if clip.number >= first]
    write_dataset(folder, made)
    order = DataOrder(rows_of(read_index(folder / INDEX)), ORDER, 5, "reward")
    return batches(folder, order, steps), order


def objective(rewards: Rewards, weight: float) -> RewardObjective:
    codec = open_codec(DctCodecConfig())
    return RewardObjective(RewardTermConfig(weight=weight), PyramidSchedule(ScheduleConfig()), codec, rewards)


def post_trained(
    start: nn.Module, goal: RewardObjective, data: list[Batch], order: DataOrder, watch: Watch
) -> nn.Module:
    engine = PlainEngine(copy.deepcopy(start), lr=LR)
    for step in range(STEPS):
        size = order.step_size(step % len(data))
        terms = goal(engine, data[step % len(data)], size)  # type: ignore[arg-type]
        means = {name: total / count for name, (total, count) in terms.logged.items() if count}
        watch.add({"step": step, "loss": terms.flow / size.samples, **means})
        engine.backward(terms.loss / size.samples)
        engine.step()
    return engine.model


def scores(made: nn.Module, goal: RewardObjective, data: list[Batch], order: DataOrder) -> Iterator[float]:
    """ConSE of each held-out batch: the same clips, captions, timesteps and noise for every model."""
    for step, batch in enumerate(data):
        total, count = goal(PlainEngine(made), batch, order.step_size(step)).logged["score_conse"]  # type: ignore[arg-type]
        yield total / count


def test_the_reward_raises_held_out_conse_and_no_monitor_fires(rewards: Rewards, tmp_path: Path) -> None:
    data, order = data_of(tmp_path / "trained", 0, 12, TRAINED)
    unseen, its_order = data_of(tmp_path / "unseen", 12, 12, HELD_OUT)
    engine, flow = PlainEngine(model(), lr=2e-3), FlowObjective(1000)
    for step in range(WARM):
        size = order.step_size(step % len(data))
        engine.backward(flow(engine, data[step % len(data)], size).loss / size.samples)  # type: ignore[arg-type]
        engine.step()
    start, watch, control = engine.model, *(Watch(WatchConfig(), SAVES) for _ in range(2))
    rewarded = post_trained(start, objective(rewards, WEIGHT), data, order, watch)
    plain = post_trained(start, objective(rewards, 1e-9), data, order, control)
    goal = objective(rewards, 1.0)
    before, after, without = (list(scores(made, goal, unseen, its_order)) for made in (start, rewarded, plain))
    gains = [a - b for a, b in zip(after, without, strict=True)]
    gain, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    print(f"held-out ConSE: start {statistics.fmean(before):.4f}, without the reward {statistics.fmean(without):.4f}, "
          f"with it {statistics.fmean(after):.4f}: paired gain {gain:.4f}, standard error {error:.4f}")  # fmt: skip
    assert gain > 3 * error
    assert statistics.fmean(after) > statistics.fmean(before)
    assert watch.alarm is None
    assert control.alarm is None
