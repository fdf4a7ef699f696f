"""A small random Wan2.1 VAE of 16 channels, saved as diffusers saves the published one."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan


def write_tiny_wan_vae(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[c / 10 for c in range(16)],
        latents_std=[1 + c / 8 for c in range(16)],
    )  # fmt: skip
    vae.save_pretrained(folder)
    return folder
