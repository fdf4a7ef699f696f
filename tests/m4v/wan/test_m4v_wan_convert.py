"""The MM-DiM model started from Wan's attention weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from wan_cases import config_of, contents, random_attention

from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.model.initialise import SILU_ONE
from m4v.model.layers import rotate
from m4v.model.layout import Clip
from m4v.model.scan import LAYER_ORDER, scan_order
from m4v.wan.checkpoint import WanCheckpointConfig, load_wan, save_wan
from m4v.wan.convert import attention_to_mm_dim
from m4v.wan.export import export_published
from m4v.wan.initialise import build_wan, empty_wan
from m4v.wan.mixer import clip_layout, mix_context
from m4v.wan.published import open_published


@pytest.mark.parametrize("order", ["dual", "literal"])
def test_conversion_takes_the_attention_weights(order: str) -> None:
    config = config_of(projection_order=order)
    source = contents(random_attention())
    state = attention_to_mm_dim(source, config, seed=3)
    model = empty_wan(config)
    model.load_state_dict(state, assign=True)
    c, b = ("q", "k") if order == "dual" else ("k", "q")
    for block in range(2):
        here, there = f"blocks.{block}.attn1.mamba.", f"blocks.{block}.attn1."
        for ours, theirs in ((f"to_{x}", f"to_{y}") for x, y in (("c", c), ("b", b), ("x", "v"))):
            assert torch.equal(state[f"{here}{ours}.weight"], source[f"{there}{theirs}.weight"])
            assert torch.equal(state[f"{here}{ours}.bias"], source[f"{there}{theirs}.bias"])
        for ours, theirs in ((f"norm_{x}", f"norm_{y}") for x, y in (("c", c), ("b", b))):
            assert torch.equal(state[f"{here}{ours}.weight"], source[f"{there}{theirs}.weight"])
        assert torch.equal(state[f"{there}to_out.0.weight"], source[f"{there}to_out.0.weight"])
    same = [key for key in source if ".attn1." not in key]
    assert all(torch.equal(state[key], source[key]) for key in same)
    fresh = build_wan(config, 3).state_dict()
    others = [key for key in state if ".attn1." in key and key not in source and ".mamba.to_" not in key]
    assert all(torch.equal(state[key], fresh[key]) for key in others if ".norm_" not in key)


def test_converted_queries_and_keys_are_those_of_the_attention() -> None:
    """C and B of a token equal Wan's normed and rotated q and k: the duality holds head by head."""
    source = random_attention()
    config = config_of(text_recomposition=False, registers=False, temporal_branch=False)
    model = empty_wan(config)
    model.load_state_dict(attention_to_mm_dim(contents(source), config, 0), assign=True)
    x = torch.randn(1, 12, 24, generator=torch.Generator().manual_seed(0))
    theirs, ours = source.blocks[1].attn1, model.blocks[1].attn1.mamba
    cos, sin = source.rope(torch.zeros(1, 4, 2, 4, 6))

    def rotated(u: Tensor) -> Tensor:
        first, second = u[..., 0::2], u[..., 1::2]
        c, s = cos[..., 0::2], sin[..., 1::2]
        return torch.stack([first * c - second * s, first * s + second * c], dim=-1).flatten(-2)

    context = mix_context(config, clip_layout(Clip(2, 2, 3), 0), torch.ones(1, 0, dtype=torch.bool), x)
    for project, norm, own, own_norm in (
        (theirs.to_q, theirs.norm_q, ours.to_c, ours.norm_c),
        (theirs.to_k, theirs.norm_k, ours.to_b, ours.norm_b),
    ):
        expected = rotated(norm(project(x)).unflatten(-1, (2, -1)))
        found = rotate(own_norm(own(x).unflatten(-1, (2, -1))), context.turn)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_published_weights_become_a_checkpoint(tmp_path: Path, layout: str) -> None:
    """The lines of the package's docstring: published folder in, MM-DiM checkpoint out."""
    source = random_attention()
    export_published(tmp_path / "published", source.wan, source.state_dict(), layout, torch.bfloat16)
    state = attention_to_mm_dim(open_published(tmp_path / "published").stored(), config_of(), seed=3)
    save_wan(tmp_path / "checkpoint", WanCheckpointConfig(model=config_of()), state)
    model, _ = load_wan((tmp_path / "checkpoint").joinpath)
    rounded = {key: value.bfloat16().float() for key, value in contents(source).items()}
    expected = attention_to_mm_dim(rounded, config_of(), seed=3)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_zero_decay_is_causal_linear_attention() -> None:
    """Without decay, step size, convolution, skip and gate, the converted mixer is Wan's attention, causal in the
    scan order, with the raw scores q k in the place of the softmax."""
    source = random_attention()
    config = config_of(text_recomposition=False, registers=False, temporal_branch=False)
    model = empty_wan(config)
    model.load_state_dict(attention_to_mm_dim(contents(source), config, 0), assign=True)
    model.double(), source.double()
    mixer, attention = model.blocks[0].attn1, source.blocks[0].attn1
    mamba = mixer.mamba
    with torch.no_grad():
        mamba.A_log.fill_(-1e4)
        mamba.to_dt.weight.zero_()
        mamba.dt_bias.fill_(np.log(np.e - 1))  # softplus: 1
        mamba.conv.weight.zero_()
        mamba.conv.weight[:, -1] = 1
        mamba.conv.bias.zero_()
        mamba.D.zero_()
        mamba.to_z.weight.zero_()
        mamba.to_z.bias.fill_(SILU_ONE)
    clip, x = Clip(3, 3, 2), torch.randn(1, 18, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    context = mix_context(config, clip_layout(clip, 0), torch.ones(1, 0, dtype=torch.bool), x)
    q, k = (
        rotate(norm(project(x)).unflatten(-1, (2, -1)), context.turn)
        for project, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k))
    )
    v = torch.nn.functional.silu(attention.to_v(x)).unflatten(-1, (2, -1))  # Mamba's activation stays
    frame = scan_order(LAYER_ORDER[0], 3, 2)
    order = np.concatenate([frame + 6 * number for number in range(3)])
    q, k, v = (u[:, order].transpose(1, 2) for u in (q, k, v))
    mixed = (q @ k.transpose(-1, -2)).tril() @ v
    expected = torch.empty_like(x)
    expected[:, order] = mixed.transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x, context), attention.to_out[0](expected), atol=1e-8, rtol=1e-8)


def test_conversion_names_what_does_not_fit() -> None:
    source = contents(random_attention())
    key = "blocks.1.attn1.norm_k.weight"
    with pytest.raises(DataIntegrityError, match=key):
        attention_to_mm_dim({k: v for k, v in source.items() if k != key}, config_of(), 0)
    with pytest.raises(DataIntegrityError, match=rf"{key} has shape \(3,\), the model needs \(24,\)"):
        attention_to_mm_dim(source | {key: torch.zeros(3)}, config_of(), 0)
    with pytest.raises(DataIntegrityError, match="fit nowhere"):
        attention_to_mm_dim(source | {"blocks.2.ffn.net.2.bias": torch.zeros(24)}, config_of(), 0)
    with pytest.raises(ConfigError, match="only an MM-DiM model"):
        attention_to_mm_dim(source, config_of(mixer="attention"), 0)
