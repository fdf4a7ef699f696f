"""Attention weights carried over into the state-space mixer."""

import math

import pytest
import torch
from torch.nn import functional as F

from m4v.config import ModelConfig
from m4v.core.errors import DataIntegrityError
from m4v.model import M4VTransformer, build_model
from m4v.model.convert import attention_to_mamba
from m4v.model.layers import rotate
from m4v.model.layout import BatchLayout, Clip, Column, rotary
from m4v.model.mamba import MambaMixer
from m4v.model.recomposition import recomposition, text_order
from m4v.model.tables import composition_table, register_types

SIZES = {
    "width": 32, "heads": 2, "double_blocks": 1, "single_blocks": 1, "latent_channels": 4, "text_dim": 8,
    "pooled_dim": 6, "text_slots": 3, "chunk_size": 8,
}  # fmt: skip
PLAIN = {"registers": False, "text_recomposition": False, "temporal_branch": False}


def attention_model() -> M4VTransformer:
    model = build_model(ModelConfig.model_validate(SIZES | {"mixer": "attention"}), 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def converted(order: str, **changes: object) -> M4VTransformer:
    config = ModelConfig.model_validate(SIZES | {"projection_order": order} | changes)
    model = M4VTransformer(config)
    model.load_state_dict(attention_to_mamba(attention_model().state_dict(), config, seed=5))
    return model


@torch.no_grad()
def test_zero_decay_is_unnormalised_causal_linear_attention() -> None:
    """With decay, step, gate, convolution and skip neutral, the mixer is sum over j <= i of (q_i k_j) silu(v_j)."""
    mixer = converted("dual", **PLAIN).single_transformer_blocks[0].mamba.double()
    assert isinstance(mixer, MambaMixer)
    mixer.A_log.fill_(-math.inf)
    mixer.to_dt.weight.zero_()
    mixer.dt_bias.fill_(math.log(math.e - 1))  # softplus gives a step of 1
    mixer.to_z.weight.zero_()
    mixer.conv.weight.zero_()
    mixer.conv.weight[:, -1] = 1
    mixer.conv.bias.zero_()
    mixer.D.zero_()
    layout = BatchLayout((Column(0, (Clip(3, 2, 2),)),), 3)
    table = composition_table(layout, 0, "raster", False, False, 8, 3, "cpu")
    tables = recomposition(table, text_order(torch.ones(1, 1, 3, dtype=torch.bool)), 15, torch.float64)
    turn = rotary(layout, mixer.config.axes, 10000.0, False, "cpu", True)
    x = torch.randn(1, 15, 32, dtype=torch.float64)
    y = mixer(x, register_types(layout, "cpu"), turn, tables)

    attention = attention_model().single_transformer_blocks[0].attn.double()
    q = rotate(attention.norm_q(attention.to_q(x).unflatten(-1, (2, 16))), turn)
    k = rotate(attention.norm_k(attention.to_k(x).unflatten(-1, (2, 16))), turn)
    scores = torch.einsum("blhn,bmhn->bhlm", q, k).tril()
    expected = torch.einsum("bhlm,bmhp->blhp", scores, F.silu(attention.to_v(x)).unflatten(-1, (2, 16)))
    torch.testing.assert_close(y, expected.flatten(2), rtol=1e-6, atol=1e-7)


def test_orders_pair_query_and_key_differently() -> None:
    attention = attention_model().single_transformer_blocks[0].attn
    dual, literal = (converted(o).single_transformer_blocks[0].mamba for o in ("dual", "literal"))
    assert torch.equal(dual.to_c.weight, attention.to_q.weight)
    assert torch.equal(dual.norm_b.weight, attention.norm_k.weight)
    assert torch.equal(literal.to_b.weight, attention.to_q.weight)
    assert torch.equal(literal.norm_c.weight, attention.norm_k.weight)
    assert torch.equal(literal.to_x.bias, attention.to_v.bias)


def test_the_rest_is_kept_or_fresh() -> None:
    model, fresh = converted("dual"), build_model(ModelConfig.model_validate(SIZES), 5).state_dict()
    source, state = attention_model().state_dict(), model.state_dict()
    for key in (
        "proj_out.weight",
        "single_transformer_blocks.0.proj_out.weight",
        "transformer_blocks.0.attn.to_q.bias",
    ):
        assert torch.equal(state[key], source[key])
    for key in ("temporal.to_q.weight", "mamba.A_log", "mamba.registers", "mamba.to_z.bias"):
        name = f"single_transformer_blocks.0.{key}"
        assert torch.equal(state[name], fresh[name])


def test_half_converted_models_keep_their_attention() -> None:
    sizes = SIZES | {"single_blocks": 2}
    source = build_model(ModelConfig.model_validate(sizes | {"mixer": "attention"}), 1).state_dict()
    state = attention_to_mamba(source, ModelConfig.model_validate(sizes | {"mixer": "post_half"}), 0)
    kept, moved = "single_transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.1"
    assert torch.equal(state[kept], source[kept])
    assert torch.equal(state[f"{moved}.mamba.to_c.weight"], source[f"{moved}.attn.to_q.weight"])


def test_weights_that_do_not_fit_are_named() -> None:
    config = ModelConfig.model_validate(SIZES)
    source = attention_model().state_dict()
    with pytest.raises(DataIntegrityError, match=r"lack a tensor: .*attn\.to_k\.bias"):
        attention_to_mamba({k: v for k, v in source.items() if not k.endswith("0.attn.to_k.bias")}, config, 0)
    with pytest.raises(DataIntegrityError, match=r"fit nowhere: .*strange"):
        attention_to_mamba(source | {"strange": torch.ones(1)}, config, 0)
    with pytest.raises(DataIntegrityError, match=r"proj_out.bias has shape \(3,\)"):
        attention_to_mamba(source | {"proj_out.bias": torch.ones(3)}, config, 0)
