"""A VAE small enough for tests: the published depths and 16 latent channels, with random weights."""

from pathlib import Path

import torch

from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae

TINY = VaeConfig(
    encoder_block_out_channels=(8, 8, 16, 16),
    decoder_block_out_channels=(8, 8, 16, 16),
    encoder_norm_num_groups=4,
    decoder_norm_num_groups=4,
)
# As deep in time and space, with as few blocks as can be.
THIN = TINY.model_copy(update={"encoder_layers_per_block": (1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1)})
GAIN = 4  # initial weights are made for wide layers; here they would fade a picture to grey


def tiny_vae(seed: int = 0, config: VaeConfig = TINY) -> CausalVideoVae:
    vae = build_vae(config, seed)
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim > 1:
                parameter.mul_(GAIN)
    return vae.eval()


def write_tiny_vae(directory: Path, seed: int = 0) -> Path:
    """A folder as `m4v weights import` makes it."""
    save_vae(directory, tiny_vae(seed))
    return directory
