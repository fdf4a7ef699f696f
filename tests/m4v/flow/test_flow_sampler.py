"""The autoregressive sampler with models whose right answer is known."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from m4v.config import SamplerConfig, ScheduleConfig
from m4v.core.errors import ConfigError
from m4v.flow.guidance import guidance_at
from m4v.flow.latents import denormalise, normalise
from m4v.flow.sampler import generate, stream
from m4v.flow.schedule import PyramidSchedule

SCHEDULE = PyramidSchedule(ScheduleConfig())
QUICK = SamplerConfig(steps_first=(2, 2, 3), steps_later=(2, 1, 2), guidance_first=3.0, guidance_later=2.0)


def text(rows: int, value: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(
        embedding=torch.full((rows, 2, 3), value), mask=torch.ones(rows, 2), pooled=torch.full((rows, 3), value)
    )


class TowardsTarget:
    """Predicts the velocity that leads straight to `targets[frame]` (c, h, w) at the end of the highest stage."""

    def __init__(self, targets: Tensor) -> None:
        self.targets, self.calls = targets, []

    def __call__(self, columns, timesteps, embedding, mask, pooled, stages):  # type: ignore[no-untyped-def]
        (clips,), (stage,) = columns, stages
        frame = sum(c.shape[2] for c in clips) - 1
        self.calls.append((frame, stage, [tuple(c.shape[2:]) for c in clips], embedding.shape[0]))
        if stage < 2:
            return [torch.zeros_like(clips[-1])]
        table, sigmas = SCHEDULE.timesteps[2], SCHEDULE.sigmas[2]
        sigma = sigmas[int((table - timesteps[0]).abs().argmin())]
        return [((clips[-1] - self.targets[:, frame, None]) / sigma).float()]


def run(model: TowardsTarget, seeds: list[int], frames: int = 4, **options: object) -> Tensor:
    return generate(
        model, SCHEDULE, QUICK, text(len(seeds), 1.0), text(1), (frames, 8, 16), seeds, channels=4, **options
    )


def test_follows_the_velocity_to_the_target() -> None:
    targets = torch.randn(4, 4, 8, 16)
    model = TowardsTarget(targets)
    found = run(model, [1, 2])
    expected = denormalise(targets[None]).expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert len(model.calls) == 7 + 3 * 5
    assert model.calls[-1] == (3, 2, [(1, 2, 4), (1, 4, 8), (1, 8, 16), (1, 8, 16)], 4)


class Anything:
    """An arbitrary but deterministic model, equal for every row of a batch."""

    def __call__(self, columns, timesteps, embedding, mask, pooled, stages):  # type: ignore[no-untyped-def]
        context = sum(c.mean(dim=(1, 2, 3, 4)) for c in columns[0]) + pooled.sum(dim=1)
        return [torch.sin(columns[0][-1]) + context.reshape(-1, 1, 1, 1, 1)]


def test_a_sample_depends_on_its_seed_alone() -> None:
    both, first, second = run(Anything(), [11, 12]), run(Anything(), [11]), run(Anything(), [12])
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-5, atol=1e-5)
    assert torch.equal(first, run(Anything(), [11]))
    assert not torch.allclose(first, second)


def test_a_longer_video_begins_like_the_shorter_one() -> None:
    torch.testing.assert_close(run(Anything(), [3], frames=5)[:, :, :3], run(Anything(), [3], frames=3))


def test_first_frame_is_kept_and_frames_are_reported() -> None:
    given, seen = torch.randn(1, 4, 1, 8, 16), []
    found = run(Anything(), [5], first_frame=given, on_frame=lambda i, latent: seen.append((i, latent)))
    torch.testing.assert_close(found[:, :, :1], given)
    assert [index for index, _ in seen] == [0, 1, 2, 3]
    for index, latent in seen:
        torch.testing.assert_close(latent, found[:, :, index : index + 1])
    assert not torch.allclose(normalise(found), found)


def test_guidance_off_makes_one_call_per_sample() -> None:
    model = TowardsTarget(torch.zeros(4, 1, 8, 16))
    config = QUICK.model_copy(update={"guidance_first": 0.0})
    generate(model, SCHEDULE, config, text(2), text(1), (1, 8, 16), [1, 2], channels=4)
    assert {rows for *_, rows in model.calls} == {2}


def test_guidance_schedule() -> None:
    config = SamplerConfig(guidance_first=7.0, guidance_later=5.0, guidance_decay=1.0)
    assert [guidance_at(config, i) for i in range(6)] == [7.0, 4.0, 3.0, 2.0, 2.0, 2.0]
    assert guidance_at(SamplerConfig(), 9) == 5.0


def test_steps_for_another_number_of_stages_are_refused() -> None:
    config = SamplerConfig(steps_first=(2, 2), steps_later=(2, 2))
    with pytest.raises(ConfigError, match="2 stages, the model's schedule has 3"):
        generate(Anything(), SCHEDULE, config, text(1), text(1), (1, 8, 16), [0], channels=4)
    with pytest.raises(ValueError, match="one positive count per stage"):
        SamplerConfig(steps_first=(2, 2, 0))


def test_frames_are_let_go_as_they_are_passed_on() -> None:
    """Of the tensors at full size only the newest frame's live on, however long the video is."""
    living = {}
    for frames in (4, 12):
        passed: list[weakref.ref[Tensor]] = []
        for latent in stream(Anything(), SCHEDULE, QUICK, text(1, 1.0), text(1), (frames, 8, 16), [7], channels=5):
            passed.append(weakref.ref(latent))
            if len(passed) == frames:
                gc.collect()
                full = sum(type(o) is Tensor and o.shape == latent.shape for o in gc.get_objects())
                living[frames] = (sum(r() is not None for r in passed), full)
    assert living[4] == living[12]
    assert living[12][0] == 1


def test_streamed_frames_are_those_of_generate() -> None:
    parts = stream(Anything(), SCHEDULE, QUICK, text(1, 1.0), text(1), (5, 8, 16), [7], channels=4)
    assert torch.equal(torch.cat(list(parts), dim=2), run(Anything(), [7], frames=5))


def test_low_precision_is_the_models_alone() -> None:
    """The model sees its own type; the steps are summed in float32."""
    seen = set()

    def model(columns, timesteps, embedding, mask, pooled, stages):  # type: ignore[no-untyped-def]
        seen.update(c.dtype for c in columns[0])
        return [torch.ones_like(columns[0][-1])]

    rows = text(1)
    half = SimpleNamespace(embedding=rows.embedding.bfloat16(), mask=rows.mask, pooled=rows.pooled.bfloat16())
    found = generate(model, SCHEDULE, QUICK, half, half, (2, 8, 16), [0], channels=4)
    assert seen == {torch.bfloat16}
    assert found.dtype == torch.float32
