"""A model with random weights, none of them zero: zeros are quicker to multiply and pass no gradient on."""

from __future__ import annotations

import torch

from m4v.config import ModelConfig
from m4v.model import M4VTransformer


def random_model(
    config: ModelConfig, device: torch.device | str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> M4VTransformer:
    """On `device`; matrices normal(0.02), what scales near one, decays and steps in Mamba's ranges."""
    with torch.device("meta"):
        model = M4VTransformer(config)
    model.cast(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            parameter.normal_(0, 0.02, generator=generator)
            if leaf == "A_log":
                parameter.uniform_(0, 2.77, generator=generator)
            elif leaf == "dt_bias":
                parameter.uniform_(-6.9, -2.2, generator=generator)
            elif leaf in ("D", "scale") or (leaf == "weight" and parameter.dim() == 1):
                parameter.add_(1)
    return model
