"""Packing, noise and estimates: properties that hold for any data."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m4v.config import ScheduleConfig
from m4v.flow.estimate import clean_estimate
from m4v.flow.latents import denormalise, noise_at, normalise, pyramid
from m4v.flow.packing import ColumnDraws, corruption_levels, history_shape, pack_column
from m4v.flow.schedule import PyramidSchedule, block_noise

SHAPE = (4, 6, 8, 16)  # channels, frames, height, width
SCHEDULE = PyramidSchedule(ScheduleConfig())


def latents(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))


def draws(keys: list[tuple[str, int]], stage: int, unit: int, **options: bool) -> ColumnDraws:
    return ColumnDraws.from_keys(7, keys, SHAPE, stage, unit, **options)


@given(st.integers(0, 2), st.integers(1, 31))
@settings(deadline=None)
def test_history_follows_the_temporal_pyramid(stage: int, unit: int) -> None:
    clips = history_shape(stage, unit)
    assert sum(frames for _, frames in clips) == unit - 1
    sizes = [size for size, frames in clips for _ in range(frames)][::-1]  # newest first
    assert sizes == [max(stage - age, 0) for age in range(unit - 1)]
    assert all(frames == 1 for size, frames in clips[1:])


def test_history_of_each_stage() -> None:
    assert history_shape(2, 1) == ()
    assert history_shape(2, 6) == ((0, 3), (1, 1), (2, 1))
    assert history_shape(1, 6) == ((0, 4), (1, 1))
    assert history_shape(0, 6) == ((0, 4), (0, 1))
    assert history_shape(2, 3) == ((1, 1), (2, 1))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_a_column_does_not_depend_on_its_batch(stage: int, whole: bool) -> None:
    keys, data = [("a", 0), ("b", 5)], latents()
    both = pack_column(SCHEDULE, data, stage, 4, draws(keys, stage, 4, whole=whole), whole=whole)
    for row, key in enumerate(keys):
        one = pack_column(SCHEDULE, data[row : row + 1], stage, 4, draws([key], stage, 4, whole=whole), whole=whole)
        assert torch.equal(one.timestep, both.timestep[row : row + 1])
        assert torch.equal(one.target, both.target[row : row + 1])
        assert all(torch.equal(a, b[row : row + 1]) for a, b in zip(one.clips, both.clips, strict=True))


def test_draws_differ_by_sample_draw_seed_and_purpose() -> None:
    base = draws([("a", 0)], 2, 4)
    for other in (draws([("b", 0)], 2, 4), draws([("a", 1)], 2, 4), ColumnDraws.from_keys(8, [("a", 0)], SHAPE, 2, 4)):
        assert not torch.equal(base.noise, other.noise)
        assert not torch.equal(base.step, other.step)
    assert not torch.equal(base.corruption, base.corruption_floor)
    first, second = draws([("a", 0)], 0, 3).history
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    assert base.noise.dtype == base.step.dtype == torch.float32


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_clean_estimate_of_the_true_velocity_is_the_latent(stage: int) -> None:
    data = latents()
    column = pack_column(SCHEDULE, data, stage, 5, draws([("a", 0), ("b", 0)], stage, 5))
    found = clean_estimate(SCHEDULE, column, column.target)
    torch.testing.assert_close(found, pyramid(data)[stage][:, :, 4:5], atol=1e-4, rtol=1e-4)


def test_clean_estimate_is_differentiable() -> None:
    column = pack_column(SCHEDULE, latents(), 1, 2, draws([("a", 0), ("b", 0)], 1, 2))
    prediction = column.target.clone().requires_grad_()
    clean_estimate(SCHEDULE, column, prediction).sum().backward()
    expected = (-column.sigma / (1 - SCHEDULE.end[1])).reshape(-1, 1, 1, 1, 1).expand_as(prediction)
    torch.testing.assert_close(prediction.grad, expected)


def test_linear_corruption_rises_to_the_newest_frame() -> None:
    highest, floor = torch.tensor([0.3, 0.2]), torch.tensor([0.5, 0.0])
    levels = corruption_levels(highest, floor, 4, "linear")
    torch.testing.assert_close(levels[0], torch.tensor([0.15, 0.2, 0.25, 0.3]))
    torch.testing.assert_close(levels[1], torch.tensor([0.0, 0.2 / 3, 0.4 / 3, 0.2]))
    torch.testing.assert_close(corruption_levels(highest, floor, 1, "linear"), highest[:, None])
    assert corruption_levels(highest, floor, 0, "linear").shape == (2, 0)
    assert torch.equal(corruption_levels(highest, floor, 3, "constant"), highest[:, None].expand(2, 3))


def test_corruption_can_be_turned_off() -> None:
    clean = PyramidSchedule(ScheduleConfig(corruption_ratio=0.0))
    data = latents()
    column = pack_column(clean, data, 2, 4, draws([("a", 0), ("b", 0)], 2, 4))
    levels = pyramid(data)
    assert torch.equal(column.clips[0], levels[0][:, :, :1])
    assert torch.equal(column.clips[1], levels[1][:, :, 1:2])
    assert torch.equal(column.clips[2], levels[2][:, :, 2:3])


def test_block_noise_covariance() -> None:
    z = torch.randn(1, 1, 1, 400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gamma in (1 / 3, 0.25):
        blocks = block_noise(z, gamma).reshape(200, 2, 200, 2).permute(0, 2, 1, 3).reshape(-1, 4)
        covariance = blocks.T @ blocks / len(blocks)
        expected = (1 + gamma) * torch.eye(4).double() - gamma
        torch.testing.assert_close(covariance, expected, atol=0.02, rtol=0)
    assert block_noise(z, 1 / 3).reshape(200, 2, 200, 2).sum(dim=(1, 3)).abs().max() < 1e-12


@pytest.mark.parametrize("stage", [1, 2])
def test_renoising_gives_the_statistics_of_the_stage_start(stage: int) -> None:
    """Ending a stage and entering the next lands on the distribution that training starts from."""
    alpha, beta = SCHEDULE.renoise_factors(stage)
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, 1, 1, 300, 300, generator=generator, dtype=torch.float64) * SCHEDULE.end[stage - 1]
    up = low.repeat_interleave(2, -1).repeat_interleave(2, -2)
    z = torch.randn(up.shape, generator=generator, dtype=torch.float64)
    noise = alpha * up + beta * block_noise(z, SCHEDULE.config.gamma)
    assert float(noise.std()) == pytest.approx(SCHEDULE.start[stage], rel=0.01)
    neighbours = (noise[..., ::2] * noise[..., 1::2]).mean() / noise.var()
    assert abs(float(neighbours)) < 0.01  # white again
    assert alpha * (1 - SCHEDULE.end[stage - 1]) == pytest.approx(1 - SCHEDULE.start[stage], rel=1e-6)


def test_noise_keeps_its_variance_at_every_stage() -> None:
    noise = torch.randn(1, 1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    for stage in range(3):
        assert float(noise_at(noise, stage).std()) == pytest.approx(1.0, rel=0.05)


def test_normalisation_round_trip() -> None:
    data = latents()
    torch.testing.assert_close(denormalise(normalise(data)), data)
    assert torch.equal(normalise(data)[:, :, :1], normalise(data[:, :, :1]))


def test_units_outside_the_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="unit 7 of latents with 6 frames"):
        pack_column(SCHEDULE, latents(), 2, 7, draws([("a", 0), ("b", 0)], 2, 7))


@pytest.mark.parametrize(
    "changes", [{"stage_range": (0.0, 0.5, 1.0)}, {"stage_range": (0.0, 0.6, 0.5, 1.0)}, {"gamma": 0.5}], ids=str
)
def test_bad_schedules_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"stage_range|gamma"):
        ScheduleConfig.model_validate(changes)


def test_last_timestep_cannot_leave_the_table() -> None:
    keyed = draws([("a", 0), ("b", 0)], 2, 1)
    almost_one = math.nextafter(1.0, 0.0)
    edge = ColumnDraws(keyed.noise, torch.tensor([almost_one, 1.0]), keyed.corruption, keyed.corruption_floor, ())
    column = pack_column(SCHEDULE, latents(), 2, 1, edge)
    assert column.timestep.tolist() == [SCHEDULE.timesteps[2][-1].item()] * 2
