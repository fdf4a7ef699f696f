"""The Wan transformer: equal to diffusers with attention; the MM-DiM block equal to its definition in float64."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from m4v.model.layout import Clip
from m4v.model.reference import mixer_reference, temporal_reference
from m4v.wan.config import WanConfig
from m4v.wan.initialise import build_wan
from m4v.wan.mixer import WanMixContext, WanMixer, WanTemporalBranch, clip_layout, mix_context
from m4v.wan.transformer import WanMMDiMBlock, WanTransformer

QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SIZES = {
    "width": 24, "heads": 2, "blocks": 2, "mlp_width": 40, "latent_channels": 4, "text_dim": 6, "text_slots": 5,
    "frequency_dim": 16, "chunk_size": 8, "dt_rank": 3,
}  # fmt: skip


def wan_config(**changes: object) -> WanConfig:
    return WanConfig.model_validate(SIZES | changes)


def random_wan(config: WanConfig, seed: int = 0) -> WanTransformer:
    """No parameter at a special value, so that nothing is hidden behind a zero."""
    model = build_wan(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(config: WanConfig, latent: tuple[int, int, int], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text that is zero behind each row's length."""
    generator = torch.Generator().manual_seed(1)
    batch = len(lengths)
    latents = torch.randn(batch, config.latent_channels, *latent, generator=generator)
    text = torch.randn(batch, config.text_slots, config.text_dim, generator=generator)
    real = torch.arange(config.text_slots) < torch.tensor(lengths)[:, None]
    return latents, torch.linspace(3, 997, batch), text * real[..., None]


def diffusers_twin(model: WanTransformer) -> WanTransformer3DModel:
    arguments = {key: value for key, value in model.config.items() if not key.startswith("_")}
    twin = WanTransformer3DModel(**arguments)
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("latent", [(1, 2, 2), (3, 6, 10), (9, 4, 14)])
@pytest.mark.parametrize("cross_norm", [True, False])
def test_attention_model_equals_diffusers(latent: tuple[int, int, int], cross_norm: bool) -> None:
    model = random_wan(wan_config(mixer="attention", cross_attention_norm=cross_norm))
    latents, timesteps, text = inputs(model.wan, latent, (5, 0))
    ours, theirs = model(latents, timesteps, text).sample, diffusers_twin(model)(latents, timesteps, text).sample
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert theirs.abs().max() > 0.1


def test_attention_gradients_equal_diffusers() -> None:
    model = random_wan(wan_config(mixer="attention"))
    twin = diffusers_twin(model)
    arguments = inputs(model.wan, (2, 4, 6), (3,))
    for candidate in (model, twin):
        candidate(*arguments).sample.square().sum().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[WanConfig, Clip, tuple[int, ...]]:
    ssm = draw(st.sampled_from(["ssd", "mamba1"]))
    config = wan_config(
        ssm=ssm,
        state_size=None if ssm == "ssd" else 4,
        text_recomposition=draw(st.booleans()),
        registers=draw(st.booleans()),
        rope_on_ssm=draw(st.booleans()),
        scan=draw(st.sampled_from(["serpentine", "raster"])),
        temporal_causal=draw(st.booleans()),
    )
    clip = Clip(draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    lengths = tuple(draw(st.integers(0, config.text_slots)) for _ in range(draw(st.integers(1, 2))))
    return config, clip, lengths


def packed(config: WanConfig, clip: Clip, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, WanMixContext]:
    """Random [text, video] in float64, which text is real, and the blocks' context."""
    slots = config.sequence_text
    layout = clip_layout(clip, slots)
    generator = torch.Generator().manual_seed(2)
    shape = (len(lengths), slots + layout.image_tokens, config.width)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    valid = torch.arange(slots) < torch.tensor(lengths)[:, None]
    return x, valid, mix_context(config, layout, valid, x)


def assert_equal_with_gradients(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=found.dtype)
    ours = torch.autograd.grad((found * weight).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
    for mine, other, leaf in zip(ours, theirs, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zero if mine is None else mine, zero if other is None else other, atol=1e-8, rtol=1e-7
        )


@QUICK
@given(case=cases(), number=st.integers(0, 1))
def test_mixer_equals_its_definition(case: tuple[WanConfig, Clip, tuple[int, ...]], number: int) -> None:
    config, clip, lengths = case
    x, valid, context = packed(config, clip, lengths)
    mixer: WanMixer = random_wan(config).double().blocks[number].attn1
    expected = mixer_by_definition(mixer, x, context, valid)
    real = torch.cat([valid, valid.new_ones(len(lengths), context.layout.image_tokens)], dim=1)[..., None]
    # What a text pad gets is never read: only tokens are compared.
    assert_equal_with_gradients(mixer(x, context) * real, expected * real, [x, *mixer.parameters()])


def mixer_by_definition(mixer: WanMixer, x: Tensor, context: WanMixContext, valid: Tensor) -> Tensor:
    slots = context.layout.text_tokens
    mixed = mixer_reference(mixer.mamba, x, context.layout, valid[:, None], mixer.number)
    added = temporal_by_definition(mixer.temporal, x[:, slots:], context)
    out = mixer.to_out[0](torch.cat([mixed[:, :slots], mixed[:, slots:] + added], dim=1))
    scale = 1 if mixer.text_scale is None else mixer.text_scale
    return torch.cat([out[:, :slots] * scale, out[:, slots:]], dim=1)


def temporal_by_definition(branch: WanTemporalBranch, video: Tensor, context: WanMixContext) -> Tensor:
    if branch.causal:
        return temporal_reference(branch, video, context.layout)
    frames = video.unflatten(1, (context.layout.columns[0].frames, -1))
    q = branch.norm_q(branch.to_q(frames).unflatten(-1, branch.heads))  # (b, t, places, heads, channels)
    k = branch.norm_k(branch.to_k(frames).unflatten(-1, branch.heads))
    v = branch.to_v(frames).unflatten(-1, branch.heads)
    scores = torch.einsum("btphc,bsphc->bhts", q, k) / (q.shape[2] * q.shape[4]) ** 0.5
    mixed = torch.einsum("bhts,bsphc->btphc", scores.softmax(-1), v)
    return mixed.flatten(3).flatten(1, 2) * branch.scale


@pytest.mark.parametrize("clip", [Clip(1, 1, 1), Clip(3, 3, 5), Clip(9, 2, 3)])
@pytest.mark.parametrize("text", [True, False])
def test_block_equals_its_definition(clip: Clip, text: bool) -> None:
    config = wan_config(text_recomposition=text)
    x, valid, context = packed(config, clip, (4, 2))
    block: WanMMDiMBlock = random_wan(config).double().blocks[1]
    generator = torch.Generator().manual_seed(4)
    words = torch.randn(2, config.text_slots, config.width, generator=generator, dtype=torch.float64)
    modulation = torch.randn(2, 6, config.width, generator=generator, dtype=torch.float64)
    real = torch.cat([valid, valid.new_ones(2, context.layout.image_tokens)], dim=1)[..., None]
    expected = block_by_definition(block, x, words, modulation, context, valid)
    found = block(x, words, modulation, context)
    assert_equal_with_gradients(found * real, expected * real, [x, *block.parameters()])


def block_by_definition(
    block: WanMMDiMBlock, x: Tensor, words: Tensor, modulation: Tensor, context: WanMixContext, valid: Tensor
) -> Tensor:
    """The block, written as Wan's AdaLN equations around the mixer, one sample at a time."""
    slots, rows = context.layout.text_tokens, []
    tables = (block.scale_shift_table + modulation).unbind(dim=1)

    def norm(u: Tensor) -> Tensor:
        return (u - u.mean(-1, keepdim=True)) / (u.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    inner = torch.stack([norm(row) * (1 + tables[1][i]) + tables[0][i] for i, row in enumerate(x)])
    mixed = mixer_by_definition(block.attn1, inner, context, valid)
    for i, row in enumerate(x):
        row = row + mixed[i] * tables[2][i]
        video = row[slots:]
        video = video + cross_attention(block, norm(video) * block.norm2.weight + block.norm2.bias, words[i])
        hidden = norm(video) * (1 + tables[4][i]) + tables[3][i]
        up, down = block.ffn.net[0].proj, block.ffn.net[2]
        video = video + down(F.gelu(up(hidden), approximate="tanh")) * tables[5][i]
        rows.append(torch.cat([row[:slots], video]))
    return torch.stack(rows)


def cross_attention(block: WanMMDiMBlock, video: Tensor, words: Tensor) -> Tensor:
    attention = block.attn2

    def heads(u: Tensor) -> Tensor:
        return u.unflatten(-1, (attention.heads, -1)).transpose(0, 1)

    def norm(u: Tensor, weight: Tensor) -> Tensor:
        return u / (u.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    q = heads(norm(attention.to_q(video), attention.norm_q.weight))
    k = heads(norm(attention.to_k(words), attention.norm_k.weight))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return attention.to_out[0]((weights @ heads(attention.to_v(words))).transpose(0, 1).flatten(1))


def test_text_pads_change_nothing() -> None:
    model = random_wan(wan_config()).double()
    latents, _, text = (u.double() for u in inputs(model.wan, (2, 4, 4), (3,)))
    clip = Clip(2, 2, 2)
    wide = torch.cat([text, torch.zeros(1, 11, text.shape[2])], dim=1)
    # Cross-attention reads Wan's pads, so only the mixers can be compared: same packed values, more slots.
    outs = []
    for words in (text, wide):
        slots = words.shape[1]
        valid = words.ne(0).any(-1)
        embedded = model.condition_embedder.text_embedder(words)
        video = model.patch_embedding(latents).flatten(2).transpose(1, 2)
        x = torch.cat([embedded, video], dim=1)
        context = mix_context(model.wan, clip_layout(clip, slots), valid, x)
        outs.append(model.blocks[1].attn1(x, context)[:, slots:])
    torch.testing.assert_close(outs[0], outs[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("text", [True, False])
def test_a_fresh_text_stream_leaves_the_text_as_embedded(text: bool) -> None:
    """At the start the text scale is zero: block 1's mixer sees the same text as block 0's."""
    model = build_wan(wan_config(text_recomposition=text), 0)
    latents, timesteps, words = inputs(model.wan, (2, 4, 4), (5,))
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(latents, timesteps, words)
    slots = 5 if text else 0
    assert [u.shape[1] for u in seen] == [slots + 8] * 2
    torch.testing.assert_close(seen[0][:, :slots], seen[1][:, :slots], atol=0, rtol=0)


def test_frames_see_later_ones_only_with_the_two_way_branch() -> None:
    def change_at_first_frame(**changes: object) -> float:
        model = random_wan(wan_config(text_recomposition=False, **changes))
        latents, timesteps, text = inputs(model.wan, (3, 4, 4), (5,))
        other = latents.clone()
        other[:, :, 2] += 1.0
        before, after = (model(u, timesteps, text).sample[:, :, 0] for u in (latents, other))
        return float((before - after).abs().max().detach())

    assert change_at_first_frame() == 0.0
    assert change_at_first_frame(temporal_causal=False) > 1e-6


def test_closing_text_lets_later_frames_reach_earlier_ones() -> None:
    """Paper §3.3: the closing copy has seen the video and opens the next block's sequence."""
    model = random_wan(wan_config(blocks=2))
    latents, timesteps, text = inputs(model.wan, (3, 4, 4), (5,))
    other = latents.clone()
    other[:, :, 2] += 1.0
    before, after = (model(u, timesteps, text).sample[:, :, 0] for u in (latents, other))
    assert (before - after).abs().max() > 1e-6


@pytest.mark.parametrize("diffusers_switch", [False, True])
def test_recomputing_blocks_changes_no_gradient(diffusers_switch: bool) -> None:
    grads, calls = [], []
    for recompute in (False, True):
        model = random_wan(wan_config())
        if recompute and diffusers_switch:
            model.enable_gradient_checkpointing()
        elif recompute:
            model.recompute_blocks = 2
        seen: list[int] = []
        model.blocks[1].ffn.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model(*inputs(model.wan, (2, 4, 4), (3, 1))).sample.square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        calls.append(len(seen))
    assert calls == [1, 2]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("mixer", ["attention", "mm_dim"])
def test_bfloat16_keeps_the_recurrence_exact(mixer: str) -> None:
    model = random_wan(wan_config(mixer=mixer))
    arguments = inputs(model.wan, (2, 4, 6), (5, 2))
    exact = model(*arguments).sample
    model.cast(torch.bfloat16)
    kept = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {"A_log", "dt_bias", "D"} <= kept or mixer == "attention"
    latents, timesteps, text = arguments
    rounded = model(latents.bfloat16(), timesteps, text.bfloat16()).sample
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("latent", "words"), [((2, 5, 4), "even sizes"), ((2, 4, 30), "at most 9 positions"), ((10, 4, 4), "at most 9")]
)
def test_sizes_that_do_not_fit_are_refused(latent: tuple[int, int, int], words: str) -> None:
    model = build_wan(wan_config(rope_limit=9))
    with pytest.raises(ValueError, match=words):
        model(*inputs(model.wan, latent, (5,)))
