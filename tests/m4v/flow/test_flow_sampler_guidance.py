"""Self-quality guidance (paper E.3, eq. 8 to 10) against its equations, with a real model in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from m4v.config import ModelConfig, SamplerConfig, ScheduleConfig
from m4v.flow.guidance import guidance_at, self_guidance_at
from m4v.flow.history import FrameHistory
from m4v.flow.latents import double, noise_at, normalise, pyramid
from m4v.flow.packing import history_clips
from m4v.flow.sampler import KeyedNoise, generate
from m4v.flow.schedule import PyramidSchedule
from m4v.model import build_model

SCHEDULE = PyramidSchedule(ScheduleConfig())
MODEL = ModelConfig(
    width=16, heads=1, double_blocks=1, single_blocks=1, latent_channels=4, text_dim=6, pooled_dim=5, text_slots=3
)
PLAIN = SamplerConfig(steps_first=(1, 1, 2), steps_later=(1, 1, 2), guidance_first=3.0, guidance_later=2.0)
GUIDED = PLAIN.model_copy(update={"self_guidance": 0.7, "self_guidance_from": 3})
SHAPE = (4, 8, 8)


def features(seed: int) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        embedding=torch.randn(1, 3, 6, generator=draw, dtype=torch.float64),
        mask=torch.ones(1, 3),
        pooled=torch.randn(1, 5, generator=draw, dtype=torch.float64),
    )


POSITIVE, NEGATIVE = features(1), features(2)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    found = build_model(MODEL, seed=0).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.parameters():  # the output layers start at zero
            parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.1)
    return found.eval()


def sampled(model: object, config: SamplerConfig, **options: object) -> Tensor:
    return generate(model, SCHEDULE, config, POSITIVE, NEGATIVE, SHAPE, [5], channels=4, **options)  # type: ignore[arg-type]


@torch.no_grad()
def by_the_equations(model: torch.nn.Module, frames: Tensor, config: SamplerConfig) -> Tensor:
    """The last frame after normalised `frames`, written as the paper and the reference's loop have it."""
    noise, unit = KeyedNoise([5], SCHEDULE.config.gamma), frames.shape[2] + 1

    def m(x: Tensor, history: list[Tensor], text: SimpleNamespace, t: float, stage: int) -> Tensor:
        fed = torch.full((1,), t, dtype=torch.float32)
        return model([[*history, x]], fed, text.embedding, text.mask, text.pooled, [stage])[0]

    x = noise_at(noise.initial(unit - 1, (4, 8, 8)).double(), 0)
    for stage in range(3):
        if stage:
            alpha, beta = SCHEDULE.renoise_factors(stage)
            x = double(x)
            x = alpha * x + beta * noise.block(unit - 1, stage, (4, *x.shape[3:])).double()
        f = history_clips(pyramid(frames), stage, unit)
        timesteps, sigmas = SCHEDULE.sampling(stage, config.steps_later[stage])
        for k, t in enumerate(timesteps):
            empty, w = m(x, f, NEGATIVE, t, stage), config.guidance_later
            v = empty + w * (m(x, f, POSITIVE, t, stage) - empty)  # eq. 8
            if stage == 2:
                alone = m(x, [], NEGATIVE, t, stage)
                high = alone + w * (m(x, [], POSITIVE, t, stage) - alone)  # eq. 9
                v = v + config.self_guidance * (high - v)  # eq. 10
            x = x + (sigmas[k + 1] - sigmas[k]) * v
    return x


def test_guided_frame_is_that_of_the_equations(model: torch.nn.Module) -> None:
    found = normalise(sampled(model, GUIDED))
    for unit in (3, 4):
        expected = by_the_equations(model, found[:, :, : unit - 1], GUIDED)
        torch.testing.assert_close(found[:, :, unit - 1 : unit], expected, rtol=1e-9, atol=1e-9)


def test_frames_before_the_first_guided_one_are_untouched(model: torch.nn.Module) -> None:
    plain, guided = sampled(model, PLAIN), sampled(model, GUIDED)
    assert torch.equal(plain[:, :, :2], guided[:, :, :2])
    assert (plain[:, :, 2] - guided[:, :, 2]).abs().max() > 1e-4


def test_only_the_highest_stage_is_asked_again_without_history(model: torch.nn.Module) -> None:
    seen: list[tuple[int, bool]] = []

    def watching(columns, timesteps, text, mask, pooled, stages):  # type: ignore[no-untyped-def]
        seen.append((stages[0], len(columns[0]) == 1))
        return model(columns, timesteps, text, mask, pooled, stages)

    sampled(watching, GUIDED)
    one_frame = [(0, False), (1, False), (2, False), (2, True), (2, False), (2, True)]
    assert seen[-12:] == [*one_frame, *one_frame]
    assert not any(alone for _, alone in seen[4:8]), "the second frame is not guided"


def test_where_self_guidance_applies() -> None:
    config = SamplerConfig(self_guidance=0.5)
    scales = {(f, s): self_guidance_at(config, f, s, 3) for f in range(12) for s in range(3)}
    assert {place for place, scale in scales.items() if scale} == {(f, 2) for f in range(7, 12)}
    assert not any(self_guidance_at(SamplerConfig(), f, 2, 3) for f in range(12))


def test_decay_never_raises_a_small_scale() -> None:
    config = SamplerConfig(guidance_later=1.5, guidance_decay=0.2)
    assert [guidance_at(config, i) for i in (1, 5)] == [1.5, 1.5]


def test_options_that_are_not_used_leave_the_canonical_form_alone() -> None:
    assert not {"self_guidance", "self_guidance_from", "guidance_image"} & set(SamplerConfig().canonical())
    used = SamplerConfig(self_guidance=0.5, self_guidance_from=9)
    assert used.canonical()["self_guidance_from"] == 9
    assert SamplerConfig.model_validate(used.canonical()) == used
    assert used.digest() != SamplerConfig().digest()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_history_keeps_what_the_pyramid_of_all_frames_would_give(stages: int) -> None:
    frames = torch.randn(2, 4, 6, 8, 8)
    history = FrameHistory(stages)
    for unit in range(1, 7):
        levels = pyramid(frames[:, :, : unit - 1], stages) if unit > 1 else []
        for stage in range(stages):
            found, expected = history.clips(stage), history_clips(levels, stage, unit) if unit > 1 else []
            assert len(found) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        history.add(frames[:, :, unit - 1 : unit])
