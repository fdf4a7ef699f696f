"""Initial weights of the VAE, keyed by (seed, parameter name)."""

from __future__ import annotations

import torch
from torch import nn

from m4v.core.rng import torch_seed
from m4v.shapes_only import give_memory, shapes_only
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig

WEIGHT_STD = 0.02


def build_vae(config: VaeConfig, seed: int = 0) -> CausalVideoVae:
    """An untrained float32 VAE on the CPU. Equal configs and seeds give equal bytes.

    Weights of convolutions and linear layers: truncated normal, standard deviation 0.02; biases 0; norms 1 and 0.
    """
    with shapes_only():
        vae = CausalVideoVae(config)
    give_memory(vae)
    initialise(vae, seed)
    return vae


@torch.no_grad()
def initialise(vae: CausalVideoVae, seed: int) -> None:
    """Set every parameter in place; its values depend on the seed and its name only."""
    for name, parameter in vae.named_parameters():
        module, _, leaf = name.rpartition(".")
        if leaf == "bias":
            parameter.zero_()
        elif isinstance(vae.get_submodule(module), nn.GroupNorm):
            parameter.fill_(1)
        else:
            generator = torch.Generator().manual_seed(torch_seed(seed, "init", "vae", name))
            nn.init.trunc_normal_(parameter, std=WEIGHT_STD, generator=generator)
