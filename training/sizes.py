"""Does a recipe's model have the sizes of the weights that it starts from? Torch-free: a plan asks before any work."""

from __future__ import annotations

import json

from m4v.config import ModelConfig
from m4v.core.errors import ConfigError

# What published weights decide, and its name in a recipe; the other fields of the model are the recipe's choice.
SIZES = {
    "width": "width", "heads": "heads", "double_blocks": "double_blocks", "single_blocks": "single_blocks",
    "latent_channels": "latent_channels", "patch": "patch", "mlp_ratio": "mlp_ratio", "text_dim": "text_dim",
    "pooled_dim": "pooled_dim", "axes": "rope_axes", "use_temporal_causal": "use_temporal_causal",
}  # fmt: skip


def check_sizes(published: ModelConfig, model: ModelConfig, name: str) -> None:
    """Raise ConfigError naming the first field of `model` that is not as in the weights `name`, with both values."""
    for attribute, field in SIZES.items():
        has, needs = getattr(model, attribute), json.dumps(getattr(published, attribute))
        if json.dumps(has) != needs:
            raise ConfigError(
                f"model.{field} does not fit the imported weights {name!r}, which have {needs}",
                value=has,
                where="init",
                next_step=f"set model.{field} to {needs}",
            )
