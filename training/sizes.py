"""Does a recipe's model have the sizes of the weights that it starts from? Torch-free: a plan asks before any work."""

from __future__ import annotations

import json

from m4v.core.errors import ConfigError
from m4v.family import AnyModel
from m4v.wan.config import WanConfig

# What published weights decide, and its name in a recipe; the other fields of the model are the recipe's choice.
SIZES = {
    "width": "width", "heads": "heads", "double_blocks": "double_blocks", "single_blocks": "single_blocks",
    "latent_channels": "latent_channels", "patch": "patch", "mlp_ratio": "mlp_ratio", "text_dim": "text_dim",
    "pooled_dim": "pooled_dim", "axes": "rope_axes", "use_temporal_causal": "use_temporal_causal",
}  # fmt: skip

WAN_SIZES = {
    name: name for name in
    ("width", "heads", "blocks", "mlp_width", "latent_channels", "patch", "text_dim", "frequency_dim",
     "cross_attention_norm", "norm_eps")
}  # fmt: skip


def sizes_of(model: AnyModel) -> dict[str, str]:
    """Attributes that decide the shapes of a family's weights, and their names in a recipe."""
    return WAN_SIZES if isinstance(model, WanConfig) else SIZES


def check_sizes(published: AnyModel, model: AnyModel, name: str) -> None:
    """Raise ConfigError naming the first field of `model` that is not as in the weights `name`, with both values."""
    if type(published) is not type(model):
        wanted = "set model.kind to wan" if isinstance(published, WanConfig) else "leave model.kind out"
        raise ConfigError(f"the imported weights {name!r} are of another family", where="init", next_step=wanted)
    for attribute, field in sizes_of(model).items():
        has, needs = getattr(model, attribute), json.dumps(getattr(published, attribute))
        if json.dumps(has) != needs:
            raise ConfigError(
                f"model.{field} does not fit the imported weights {name!r}, which have {needs}",
                value=has,
                where="init",
                next_step=f"set model.{field} to {needs}",
            )
