"""Start MM-DiM from Wan's self-attention (Mamba-in-Llama; paper §4.1, D.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from m4v.core.errors import ConfigError
from m4v.model.convert import carried_over
from m4v.wan.config import WanConfig
from m4v.wan.initialise import empty_wan, initial_value

# What q and k become: linear attention is a state-space model without decay in which the query reads (C)
# and the key writes (B); the paper's text pairs them the other way round.
_ROLES = {"dual": {"q": "c", "k": "b"}, "literal": {"q": "b", "k": "c"}}


def attention_to_mm_dim(attention: Mapping[str, Tensor], config: WanConfig, seed: int) -> dict[str, Tensor]:
    """State dict (float32, memory of its own) of the MM-DiM model `config` from Wan's, in diffusers' keys.

    C and B take the weights of q and k with their norms over the width, x those of v; the output projection
    and everything outside the self-attention stay. Gate, step sizes, decays, convolution, registers, temporal
    branch and text scale start fresh from `seed`. Tensors are taken one at a time, so `attention` may be
    `PublishedWan.stored()`. Raises ConfigError if `config` has no MM-DiM,
    DataIntegrityError when a weight is missing, left over, or of another shape.
    """
    if config.mixer != "mm_dim":
        raise ConfigError("only an MM-DiM model starts from attention", value=config.mixer, where="mixer")
    model = empty_wan(config)
    return carried_over(model, attention, lambda key: _source(key, config), lambda key: initial_value(model, key, seed))


def _source(key: str, config: WanConfig) -> str | None:
    """Key of the attention model that `key` is taken from; None if it starts fresh."""
    if ".attn1.temporal." in key or key.endswith(".attn1.text_scale"):
        return None
    if ".mamba." not in key:
        return key
    block, _, leaf = key.partition(".mamba.")
    roles = {"to_x": "to_v"}
    for theirs, ours in _ROLES[config.projection_order].items():
        roles |= {f"to_{ours}": f"to_{theirs}", f"norm_{ours}": f"norm_{theirs}"}
    module, _, parameter = leaf.rpartition(".")
    return f"{block}.{roles[module]}.{parameter}" if module in roles else None
