"""Tiny Wan models for the tests beside it."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from m4v.wan.config import WanConfig
from m4v.wan.initialise import build_wan
from m4v.wan.transformer import WanTransformer

SIZES = {
    "width": 24, "heads": 2, "blocks": 2, "mlp_width": 40, "latent_channels": 4, "text_dim": 6, "text_slots": 5,
    "frequency_dim": 16, "chunk_size": 8,
}  # fmt: skip


def config_of(**changes: object) -> WanConfig:
    return WanConfig.model_validate(SIZES | changes)


def random_wan(seed: int = 0, **changes: object) -> WanTransformer:
    """No parameter at a special value."""
    model = build_wan(config_of(**changes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def random_attention(seed: int = 0) -> WanTransformer:
    return random_wan(seed, mixer="attention")


def contents(model: WanTransformer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def tiny_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip
