"""What a variant's model is made of: parameters by name, and what its mixers cost. On the meta device: no memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from m4v.codec.shape import SPATIAL, TEMPORAL
from m4v.config import ModelConfig
from m4v.family import AnyModel
from m4v.flops import Setting, meta_model
from m4v.flops_table import mixer_flops
from m4v.wan.config import WanConfig

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(model: AnyModel) -> Shapes:
    """Shape of every parameter by its name."""
    module: nn.Module
    if isinstance(model, WanConfig):
        from m4v.wan.initialise import empty_wan  # needs diffusers

        module = empty_wan(model)
    else:
        module = meta_model(model)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def count(shapes: Shapes) -> int:
    """Parameters in all."""
    found = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        found += size
    return found


def common(left: Shapes, right: Shapes) -> Shapes:
    """Parameters of the same name and shape. Initial values depend on seed and name alone, and conversion takes equal
    names from equal tensors, so two models that start alike start from the same values in these."""
    return {name: shape for name, shape in left.items() if right.get(name) == shape}


def mixer_tflops(model: AnyModel, frames: int, height: int, width: int) -> float | None:
    """Of one forward of the last latent frame of a video at the highest stage; None for a model without a pyramid."""
    if not isinstance(model, ModelConfig):
        return None
    setting = Setting((frames - 1) // TEMPORAL + 1, height=height // SPATIAL, width=width // SPATIAL)
    return mixer_flops(model, setting) / 1e12
