import json
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.reward.frames import contrast, frame_difference, grid_energy, saturation, similarity
from training.reward.watch import (
    CONTRAST,
    DRIFT,
    ERROR,
    GRID,
    MOTION,
    PROBE_NAMES,
    SATURATION,
    SIMILARITY,
    Alarm,
    Row,
    Watch,
)
from training.reward.watch_config import ProbeConfig, WatchConfig

EVERY = 10
STILL = {
    "reward": 0.3, "loss": 0.5, "held_out_clip": 0.25, MOTION: 0.04, SATURATION: 0.3, CONTRAST: 0.2, GRID: 1.0,
    SIMILARITY: 0.2,
}  # fmt: skip
DRIFTS: dict[str, Callable[[float], dict[str, float]]] = {  # what a measure is after a share of the stage
    MOTION: lambda done: {MOTION: 0.04 * (1 - done)},
    SATURATION: lambda done: {SATURATION: 0.3 * (1 + 2 * done)},
    CONTRAST: lambda done: {CONTRAST: 0.2 * (1 - done)},
    GRID: lambda done: {GRID: 1 + 3 * done},
    "loss": lambda done: {"loss": 0.5 * (1 + done)},
    SIMILARITY: lambda done: {SIMILARITY: 0.2 + 0.7 * done},
    "held_out_clip": lambda done: {"held_out_clip": 0.25 * (1 - 0.5 * done), "reward": 0.3 + done},
}


def rows(
    steps: int = 60, noise: float = 0.05, seed: int = 1, drift: Callable[[float], dict[str, float]] = lambda _: {}
) -> list[Row]:
    drawn = random.Random(seed)
    found: list[Row] = []
    for step in range(steps):
        level = STILL | drift(step / steps)
        found.append({"step": step, **{k: v * (1 + drawn.gauss(0, noise)) for k, v in level.items()}})
    return found


def alarms(config: WatchConfig, seen: Sequence[Row]) -> list[Alarm]:
    watch = Watch(config, EVERY)
    return [alarm for row in seen if (alarm := watch.add(row)) is not None]


@pytest.mark.parametrize("name", DRIFTS)
def test_a_measure_that_leaves_its_bounds_raises_one_alarm_with_its_name(name: str) -> None:
    (alarm,) = alarms(WatchConfig(), rows(drift=DRIFTS[name]))
    assert [reason.split()[0] for reason in alarm.reasons] == [name]
    assert alarm.step % EVERY == alarm.good % EVERY == 0
    assert alarm.good == alarm.step - 2 * EVERY, "two windows departed, the save before them is good"
    start = float(alarm.reasons[0].rpartition(" ")[2])
    assert start == pytest.approx(STILL[name], rel=0.4), "the level of the steps up to the first save"


def test_noise_about_the_start_raises_none() -> None:
    assert not any(alarms(WatchConfig(), rows(noise=0.3, seed=seed)) for seed in range(100))


def test_a_held_out_score_may_fall_where_the_reward_does_not_rise() -> None:
    assert alarms(WatchConfig(), rows(drift=lambda done: {"held_out_clip": 0.25 * (1 - done)})) == []


def test_one_window_out_of_bounds_is_not_enough() -> None:
    seen = rows(drift=lambda done: {GRID: 4.0 if 0.5 <= done < 0.66 else 1.0})
    assert alarms(WatchConfig(), seen) == []


def test_a_limit_of_zero_switches_a_measure_off() -> None:
    assert alarms(WatchConfig(grid_energy=0), rows(drift=DRIFTS[GRID])) == []


def probed(level: Callable[[float], float], name: str, error: float = 0.01, steps: int = 60) -> list[Row]:
    """Rows with a measure of the probe at every save."""
    answers = {step: {name: level(step / steps), name + ERROR: error} for step in range(EVERY - 1, steps, EVERY)}
    return [{**row, **answers.get(step, {})} for step, row in enumerate(rows(steps))]


@pytest.mark.parametrize("name", PROBE_NAMES)
def test_the_probe_s_answers_are_held_against_the_start_model_from_the_first_save_on(name: str) -> None:
    (alarm,) = alarms(WatchConfig(), probed(lambda done: 2 * done, name))
    assert [reason.split()[0] for reason in alarm.reasons] == [name]
    (at_once,) = alarms(WatchConfig(), probed(lambda _: 1.0, name))
    assert (at_once.step, at_once.good) == (2 * EVERY, 0), "no save is good"
    assert alarms(WatchConfig(), probed(lambda _: 1.0, name, error=0.5)) == [], "within two standard errors"
    assert alarms(WatchConfig(), probed(lambda done: float(done > 0.9), name)) == [], "at one save alone"
    off = WatchConfig(drift=0, data_loss=0, seed_similarity=0)
    assert alarms(off, probed(lambda _: 1.0, name)) == []


def test_whole_numbers_count_as_the_saved_rows_bring_them_back() -> None:
    seen: list[Row] = [json.loads(json.dumps({**row, DRIFT: 1, DRIFT + ERROR: 0})) for row in rows()]
    assert [alarm.step for alarm in alarms(WatchConfig(), seen)] == [2 * EVERY]


def test_what_came_later_changes_no_key_until_it_is_set() -> None:
    assert not {"drift", "seed_similarity", "probe"} & set(WatchConfig().key_config())
    assert WatchConfig(drift=0.2).key_config()["drift"] == 0.2
    probe = WatchConfig(probe=ProbeConfig(seeds=2))
    assert WatchConfig.model_validate(probe.key_config()) == probe


def test_a_resumed_watch_decides_as_one_that_saw_every_step() -> None:
    seen = rows(drift=DRIFTS[SATURATION])
    (alarm,) = alarms(WatchConfig(), seen)
    for cut in (1, EVERY, alarm.step - 1):
        watch = Watch(WatchConfig(), EVERY, seen[:cut])
        assert next(a for row in seen[cut:] if (a := watch.add(row))) == alarm
    assert Watch(WatchConfig(), EVERY, seen).alarm == alarm


def test_steps_without_a_scored_frame_are_no_measurement() -> None:
    seen = [{**row, MOTION: None} for row in rows(drift=DRIFTS[MOTION])]
    assert alarms(WatchConfig(), seen) == []


def picture(generator: torch.Generator, side: int = 64) -> Tensor:
    return F.interpolate(torch.rand(1, 3, 5, 5, generator=generator), (side, side), mode="bicubic").clamp(0, 1)


def test_frame_measures_tell_what_they_are_named_for() -> None:
    generator = torch.Generator().manual_seed(4)
    frame = picture(generator)
    grey = frame.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert float(saturation(grey)) == pytest.approx(0, abs=1e-6)
    assert saturation(frame) > 0.05
    assert float(contrast(0.5 + 0.5 * (frame - 0.5))) == pytest.approx(float(contrast(frame)) / 2, rel=1e-4)
    tiles = F.interpolate(torch.rand(1, 1, 8, 8, generator=generator), (64, 64)).expand(-1, 3, -1, -1)
    plain, gridded = float(grid_energy(frame)), float(grid_energy(frame + 0.1 * tiles))
    assert plain == pytest.approx(1, abs=0.3)
    assert gridded > 1.5 * plain
    assert float(grid_energy(torch.full((1, 3, 64, 64), 0.5))) == 0
    still = frame[:, :, None].expand(-1, -1, 8, -1, -1)
    assert float(frame_difference(still)) == 0
    assert float(frame_difference(torch.stack([frame * k for k in torch.linspace(0.5, 1, 8)], 2))) > 0.01
    assert frame_difference(still[:, :, :1]).numel() == 0


def test_similarity_is_the_mean_cosine_with_the_others() -> None:
    same, across = F.normalize(torch.ones(3, 4), dim=1), torch.eye(3)
    assert similarity(same).tolist() == pytest.approx([1.0] * 3)
    assert similarity(across).tolist() == pytest.approx([0.0] * 3)
    angle = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    assert similarity(angle).tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert similarity(same[:1]).numel() == 0
