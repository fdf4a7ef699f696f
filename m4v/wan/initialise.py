"""Initial weights of the Wan variant: Wan's rules for what is Wan's, M4V's for the mixers; keyed by (seed, name)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m4v.model.initialise import NORMAL_STD, fill, filled, initialise_parameter
from m4v.shapes_only import give_memory, shapes_only
from m4v.wan.config import WanConfig
from m4v.wan.transformer import WanTransformer

_EMBEDDERS = ("condition_embedder.time_embedder.", "condition_embedder.text_embedder.")


def empty_wan(config: WanConfig) -> WanTransformer:
    """The model on the meta device: shapes and names without memory."""
    with shapes_only():
        return WanTransformer(config)


def build_wan(config: WanConfig, seed: int = 0) -> WanTransformer:
    """An initialised float32 model on the CPU. Equal configs and seeds give equal bytes."""
    model = empty_wan(config)
    give_memory(model)
    model.restore_rotary()
    fill(model, seed, _initialise)
    return model


def initial_value(model: WanTransformer, name: str, seed: int) -> Tensor:
    """What `build_wan` gives the parameter `name`, float32 on the CPU; the model may be on the meta device."""
    return filled(model, name, seed, _initialise)


def _initialise(owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
    leaf = name.rpartition(".")[2]
    if ".mamba." in name:
        initialise_parameter(owner, name, parameter, generator)
    elif leaf == "scale_shift_table":
        parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    elif leaf in ("bias", "text_scale"):
        parameter.zero_()
    elif name.startswith("patch_embedding."):
        nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
    elif name.startswith(_EMBEDDERS):
        parameter.normal_(0, NORMAL_STD, generator=generator)
    else:
        initialise_parameter(owner, name, parameter, generator)
