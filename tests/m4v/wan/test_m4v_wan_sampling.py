"""Sampling against diffusers' own pipeline, and training on the flow-matching objective."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from torch import Tensor
from wan_cases import SIZES, random_wan, tiny_vae

from m4v.core.errors import InputError
from m4v.wan.config import WanConfig, WanFlowConfig, WanSamplerConfig
from m4v.wan.flow import WanBatch, WanDraws, clean_estimate, pack, shifted, wan_loss, wan_velocity
from m4v.wan.initialise import build_wan
from m4v.wan.sampler import WanSampler, initial_noise, make_scheduler

SHAPE = (2, 4, 4)


@dataclass
class Text:
    embedding: Tensor


def texts(rows: int, seed: int = 0) -> Text:
    embedding = torch.randn(rows, 5, 6, generator=torch.Generator().manual_seed(seed))
    embedding[:, 3:] = 0
    return Text(embedding)


@pytest.mark.parametrize("mixer", ["attention", "mm_dim"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sampler_equals_diffusers_pipeline(mixer: str, guidance: float) -> None:
    """The model runs in diffusers' own WanPipeline, and our sampler takes the same steps."""
    model = random_wan(mixer=mixer)
    config = WanSamplerConfig(steps=4, shift=3.0, guidance=guidance)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(None, None, tiny_vae(), scheduler, transformer=model)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise([7, 8], (4, *SHAPE))
    expected = pipeline(
        prompt_embeds=texts(2).embedding, negative_prompt_embeds=texts(2, 1).embedding, latents=noise, height=32,
        width=32, num_frames=5, num_inference_steps=4, guidance_scale=guidance, output_type="latent",
    ).frames  # fmt: skip
    found = WanSampler(model, config).sample(texts(2), texts(2, 1), SHAPE, [7, 8])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - noise).abs().mean() > 0.1


def test_euler_goes_straight_down_the_shifted_levels() -> None:
    model = random_wan()
    config = WanSamplerConfig(scheduler="euler", steps=3, shift=5.0, guidance=2.0)
    found = WanSampler(model, config).sample(texts(1), texts(1, 1), SHAPE, [3])
    x, levels = initial_noise([3], (4, *SHAPE)), [shifted(s, 5.0) for s in (1.0, 2 / 3, 1 / 3)] + [0.0]
    with torch.no_grad():
        for level, following in itertools.pairwise(levels):
            time = torch.tensor([1000 * level])
            positive, negative = (model(x, time, text.embedding).sample for text in (texts(1), texts(1, 1)))
            x = x + (following - level) * (negative + 2.0 * (positive - negative))
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_unipc_levels_follow_the_shift() -> None:
    sigmas = make_scheduler(WanSamplerConfig(steps=3, shift=3.0)).sigmas
    # diffusers' UniPC takes even steps towards the last training step and ends with none.
    expected = [*(shifted(1 - 0.999 * part / 3, 3.0) for part in range(3)), 0.0]
    torch.testing.assert_close(sigmas, torch.tensor(expected), atol=2e-6, rtol=0)


def test_a_sample_depends_on_its_seed_alone() -> None:
    sampler = WanSampler(random_wan(), WanSamplerConfig(steps=2))
    pair = sampler.sample(texts(1), texts(1, 1), SHAPE, [5, 6])
    again = sampler.sample(texts(1), texts(1, 1), SHAPE, [5, 6])
    alone = sampler.sample(texts(1), texts(1, 1), SHAPE, [6])
    assert torch.equal(pair, again)
    torch.testing.assert_close(pair[1:], alone, atol=1e-5, rtol=1e-5)
    assert (pair[0] - pair[1]).abs().mean() > 0.1


def test_a_longer_clip_starts_from_the_same_noise() -> None:
    short, long = initial_noise([1, 2], (4, 2, 3, 3)), initial_noise([1, 2], (4, 5, 3, 3))
    assert torch.equal(long[:, :, :2], short)
    assert abs(float(initial_noise([1], (16, 8, 16, 16)).std()) - 1) < 0.02


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, int]] = []
    sampler = WanSampler(random_wan(), WanSamplerConfig(steps=3, guidance=0))
    sampler.sample(texts(1), None, SHAPE, [5], on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_texts_that_do_not_fit_are_refused() -> None:
    sampler = WanSampler(random_wan(), WanSamplerConfig(steps=1))
    with pytest.raises(InputError, match="prompts do not fit the seeds: '2 for 3 seeds'"):
        sampler.sample(texts(2), texts(1), SHAPE, [1, 2, 3])
    with pytest.raises(InputError, match="guidance needs a negative prompt"):
        sampler.sample(texts(1), None, SHAPE, [1])


KEYS = [("a", 0), ("b", 0)]


def test_packing_follows_the_straight_path() -> None:
    config = WanFlowConfig(shift=3.0)
    clean = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = WanDraws.from_keys(config, 1, KEYS, (4, *SHAPE))
    batch = pack(config, clean, draws)
    assert batch.noisy.dtype == torch.float64
    torch.testing.assert_close(batch.timestep, 1000 * draws.sigma)
    level = draws.sigma.double().reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(batch.noisy, clean + level * (draws.noise - clean))
    torch.testing.assert_close(clean_estimate(batch, batch.target), clean)


@pytest.mark.parametrize("draw", ["uniform", "logit_normal"])
def test_draws_depend_on_their_keys_alone(draw: str) -> None:
    config = WanFlowConfig.model_validate({"sigma_draw": draw})
    both, one = (WanDraws.from_keys(config, 1, keys, (4, 1, 2, 2)) for keys in (KEYS, KEYS[1:]))
    assert torch.equal(both.noise[1:], one.noise)
    assert torch.equal(both.sigma[1:], one.sigma)
    other = WanDraws.from_keys(config, 1, [("b", 1)], (4, 1, 2, 2))
    assert not torch.equal(other.noise, one.noise)
    many = WanDraws.from_keys(config, 1, [(str(i), 0) for i in range(400)], (1, 1, 1, 1)).sigma
    assert ((many > 0) & (many <= 1)).all()
    assert abs(float(many.median()) - shifted(0.5, 5.0)) < 0.05


@pytest.mark.parametrize("mixer", ["attention", "mm_dim"])
def test_loss_falls_on_a_fixed_batch(mixer: str) -> None:
    model = build_wan(WanConfig.model_validate(SIZES | {"mixer": mixer}), 0)
    config = WanFlowConfig(shift=1.0)
    clean = 0.5 * torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(0))
    batch = pack(config, clean, WanDraws.from_keys(config, 1, KEYS, (4, *SHAPE)))
    text = texts(2).embedding
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = wan_loss(model, batch, text)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(float(batch.target.square().mean()), rel=1e-5)  # the head starts at zero
    assert losses[-1] < 0.5 * losses[0]


def test_every_parameter_learns() -> None:
    model = random_wan()
    config = WanFlowConfig()
    clean = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(0))
    batch = pack(config, clean, WanDraws.from_keys(config, 1, KEYS, (4, *SHAPE)))
    wan_loss(model, batch, texts(2).embedding).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    # Nothing reads the text that the last block passes on.
    assert idle == {"blocks.1.attn1.text_scale"}


def test_a_perfect_model_has_no_loss() -> None:
    class Perfect(torch.nn.Module):
        def forward(self, noisy: Tensor, timestep: Tensor, text: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (batch.target,)

    config = WanFlowConfig()
    clean = torch.randn(2, 4, *SHAPE)
    batch: WanBatch = pack(config, clean, WanDraws.from_keys(config, 1, KEYS, (4, *SHAPE)))
    assert torch.equal(wan_velocity(Perfect(), batch, texts(2).embedding), batch.target)
    assert wan_loss(Perfect(), batch, texts(2).embedding) == 0
