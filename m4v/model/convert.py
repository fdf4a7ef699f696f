"""Start Mamba from trained attention (Mamba-in-Llama; paper D.2): C, B and x take the weights of q, k and v.

Linear attention is a state-space model without decay in which the query reads (C) and the key writes (B):
the order `dual`. The paper's text pairs them the other way round: `literal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from m4v.config import ModelConfig
from m4v.core.errors import DataIntegrityError
from m4v.model.initialise import initial_value
from m4v.model.transformer import M4VTransformer

_PAIRS = {
    "dual": {"to_q": "to_c", "to_k": "to_b", "to_v": "to_x", "norm_q": "norm_c", "norm_k": "norm_b"},
    "literal": {"to_q": "to_b", "to_k": "to_c", "to_v": "to_x", "norm_q": "norm_b", "norm_k": "norm_c"},
}


def attention_to_mamba(attention: Mapping[str, Tensor], config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """State dict (float32, memory of its own) of `config` from that of an attention model of the same sizes.

    Gate, step sizes, decays, convolution, registers and the temporal branch have no counterpart and start
    fresh from `seed`; the first columns of each `proj_out` go on as the output projection. Blocks that keep
    attention keep its weights; `parallel` ones have them twice. Only what starts fresh is initialised, so
    `attention` may be a memory map. Raises DataIntegrityError when a weight is missing, left over, or of
    another shape.
    """
    with torch.device("meta"):
        model = M4VTransformer(config)
    return carried_over(model, attention, lambda key: _source(key, config), lambda key: initial_value(model, key, seed))


def carried_over(
    model: nn.Module,
    attention: Mapping[str, Tensor],
    source_of: Callable[[str], str | None],
    fresh: Callable[[str], Tensor],
) -> dict[str, Tensor]:
    """State dict of `model` (float32, memory of its own): the attention model's tensor `source_of` a parameter's
    name, or where that is None a `fresh` one. Raises DataIntegrityError as `attention_to_mamba`."""
    state: dict[str, Tensor] = {}
    left = set(attention)
    for key, parameter in model.named_parameters():
        source = source_of(key)
        if source is None:
            state[key] = fresh(key)
            continue
        if source not in attention:
            raise DataIntegrityError("attention weights lack a tensor", value=source)
        found = attention[source]
        if found.shape != parameter.shape:
            raise DataIntegrityError(
                f"{source} has shape {tuple(found.shape)}, the model needs {tuple(parameter.shape)}"
            )
        state[key] = found.to("cpu", torch.float32, copy=True)
        left.discard(source)
    if left:
        raise DataIntegrityError("attention weights have tensors that fit nowhere", value=sorted(left)[:5])
    return state


def _source(key: str, config: ModelConfig) -> str | None:
    """Key of the attention model that `key` is taken from; None if it starts fresh."""
    if ".temporal." in key:
        return None
    if ".mamba." not in key:
        return key
    block, _, leaf = key.partition(".mamba.")
    module, _, parameter = leaf.rpartition(".")
    for theirs, ours in _PAIRS[config.projection_order].items():
        if module == ours:
            return f"{block}.attn.{theirs}.{parameter}"
    return None
