"""Attention weights carried over into the state-space mixer."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.config import ModelConfig
from m4v.core.errors import DataIntegrityError
from m4v.model import M4VTransformer, build_model
from m4v.model.convert import attention_to_mamba
from m4v.model.layers import rotate
from m4v.model.layout import BatchLayout, Clip, Column, rotary
from m4v.model.mamba import MambaMixer
from m4v.model.recomposition import recomposition, text_order
from m4v.model.scan import LAYER_ORDER, scan_order
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


def neutral(mixer: MambaMixer) -> MambaMixer:
    """No decay, steps of one, an open gate, a convolution that passes on, no skip: what is left is linear attention."""
    mixer.A_log.fill_(-math.inf)
    for parameter in mixer.to_dt.parameters():
        parameter.zero_()
    mixer.dt_bias.fill_(math.log(math.e - 1))  # softplus gives a step of 1
    mixer.to_z.weight.zero_()
    mixer.conv.weight.zero_()
    mixer.conv.weight[:, -1] = 1
    mixer.conv.bias.zero_()
    mixer.D.zero_()
    return mixer


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unnormalised and causal: sum over j <= i of (q_i k_j) v_j; (L, H, N) each -> (L, H N)."""
    scores = torch.einsum("lhn,mhn->hlm", query, key).tril()
    return torch.einsum("hlm,mhp->lhp", scores, value).flatten(1)


@pytest.mark.parametrize("ssm", ["ssd", "mamba1"])
@pytest.mark.parametrize("features", [PLAIN, {"temporal_branch": False}], ids=["plain", "registers and text copies"])
@pytest.mark.parametrize("order", ["dual", "literal"])
@torch.no_grad()
def test_zero_decay_is_unnormalised_causal_linear_attention(order: str, features: dict, ssm: str) -> None:
    """After conversion, over the mixer's own sequence; with `literal` keys read and queries write (paper D.2)."""
    state = {"ssm": ssm, "state_size": 8 if ssm == "mamba1" else None}
    mixer = converted(order, **features, **state).single_transformer_blocks[0].mamba.double()
    assert isinstance(mixer, MambaMixer)
    neutral(mixer)
    config, words, path = mixer.config, 2, 1
    layout = BatchLayout((Column(1, (Clip(2, 2, 2), Clip(1, 4, 4))),), 3)
    valid = torch.arange(3)[None, None] < words
    table = composition_table(
        layout, path, config.scan, config.registers, config.text_recomposition, config.chunk_size, 3, "cpu"
    )
    tokens = layout.text_tokens + layout.image_tokens
    tables = recomposition(table, text_order(valid), tokens, torch.float64)
    turn = rotary(layout, config.axes, config.rope_theta, config.registers, "cpu", True)
    x = torch.randn(1, tokens, 32, dtype=torch.float64)
    y = mixer(x, register_types(layout, "cpu"), turn, tables)[0]

    # The sequence by hand: text, each frame in scan order behind its register, text.
    visual, begin = [], layout.text_tokens
    for frame, (height, width) in enumerate([(2, 2), (2, 2), (4, 4)]):
        visual += [tokens + frame] * config.registers
        visual += (begin + scan_order(LAYER_ORDER[path], height, width, config.scan)).tolist()
        begin += height * width
    text = list(range(words))
    sequence = torch.tensor(text + visual + text * config.text_recomposition)
    registers = mixer.registers[[0, 0, 1]] if config.registers else x.new_zeros(0, 32)
    packed, turned = torch.cat([x[0], registers])[sequence], turn[sequence]

    attention = attention_model().single_transformer_blocks[0].attn.double()
    q = rotate(attention.norm_q(attention.to_q(packed).unflatten(-1, (2, 16)))[None], turned)[0]
    k = rotate(attention.norm_k(attention.to_k(packed).unflatten(-1, (2, 16)))[None], turned)[0]
    read, write = (q, k) if order == "dual" else (k, q)
    groups = (-1, config.ssm_state)  # mamba1 keeps several states per head
    mixed = linear_attention(
        *(u.flatten(1).unflatten(-1, groups) for u in (read, write, F.silu(attention.to_v(packed))))
    )
    expected = x.new_zeros(tokens + layout.columns[0].frames, 32).index_add(0, sequence, mixed)[:tokens]
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)
    assert (y[words:3] == 0).all(), "text pads"


def test_conversion_keeps_the_function_of_what_is_not_replaced() -> None:
    """With the mixers' outputs cut off, converted and attention model are the same function."""
    attention, model = attention_model().double(), converted("dual").double()
    torch.manual_seed(1)
    given = {
        "columns": [[torch.randn(1, 4, 1, 4, 4).double(), torch.randn(1, 4, 1, 8, 8).double()]],
        "timesteps": torch.tensor([300.0]).double(), "text": torch.randn(1, 3, 8).double(),
        "text_mask": torch.ones(1, 3), "pooled": torch.randn(1, 6).double(), "stages": [1],
    }  # fmt: skip
    outputs = []
    for each in (attention, model):
        with torch.no_grad():
            each.single_transformer_blocks[0].proj_out.weight[:, :32] = 0
            outputs.append(each(**given)[0])
    assert outputs[0].abs().max() > 0.1
    torch.testing.assert_close(outputs[1], outputs[0])


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
