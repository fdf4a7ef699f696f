"""Wan's causal video VAE (`diffusers.AutoencoderKLWan`) between frames and normalised latents.

Normalised latents have the published mean and deviation per channel taken out; the transformer works on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from torch import Tensor

from m4v.core.errors import DataIntegrityError, InputError

Frames = npt.NDArray[np.uint8]


class WanVae:
    """A frozen VAE. `time_stride` frames share a latent after the first, `space_stride` pixels a latent place."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.time_stride = int(vae.config.scale_factor_temporal)
        self.space_stride = int(vae.config.scale_factor_spatial)
        self._mean = torch.tensor(vae.config.latents_mean).reshape(-1, 1, 1, 1)
        self._deviation = torch.tensor(vae.config.latents_std).reshape(-1, 1, 1, 1)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of a clip. Raises InputError for a size that has no latents or no whole tokens."""
        step = 2 * self.space_stride  # a token is two latent places wide
        stride = self.time_stride
        if frames < 1 or (frames - 1) % stride:
            near = max(frames - 1, 0) // stride * stride + 1
            raise InputError(f"a clip needs {stride} k + 1 frames", value=frames, next_step=f"ask for {near}")
        if height < step or width < step or height % step or width % step:
            raise InputError(f"height and width must be multiples of {step}", value=f"{height} x {width}")
        return (frames - 1) // stride + 1, height // self.space_stride, width // self.space_stride

    @torch.no_grad()
    def encode(self, frames: Frames) -> Tensor:
        """uint8 RGB (T, H, W, 3) to the normalised mean latent, float32 (c, t, h, w) on the CPU."""
        self.latent_shape(*frames.shape[:3])
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(self.vae.device, self.vae.dtype)
        mean: Tensor = self.vae.encode(pixels / 127.5 - 1).latent_dist.mode()[0].float().cpu()
        return (mean - self._mean) / self._deviation

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Frames:
        """A normalised latent (c, t, h, w) to uint8 RGB frames (T, H, W, 3)."""
        return np.concatenate(list(self.decode_stream(latent)))

    @torch.no_grad()
    def decode_stream(self, latent: Tensor) -> Iterator[Frames]:
        """The frames of each latent in turn, (1, H, W, 3) and then (time_stride, H, W, 3) each.

        Only the decoder's window of past features is kept, so memory does not grow with the clip's length.
        """
        vae = self.vae
        vae.clear_cache()
        features = vae._feat_map
        for frame in range(latent.shape[1]):
            piece = latent[:, frame : frame + 1].float().cpu() * self._deviation + self._mean
            mixed = vae.post_quant_conv(piece[None].to(vae.device, vae.dtype))
            # The decoder keeps each convolution's past in `features` and counts them in a list of one number.
            pixels = vae.decoder(mixed, feat_cache=features, feat_idx=[0], first_chunk=frame == 0)
            yield _to_bytes(pixels[0])
        vae.clear_cache()


def _to_bytes(pixels: Tensor) -> Frames:
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    frames: Frames = scaled.permute(1, 2, 3, 0).cpu().numpy()
    return frames


def open_wan_vae(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanVae:
    """The VAE of a local folder in diffusers' layout (`config.json` and safetensors, or their `vae` subfolder).

    Raises InputError if there is none, DataIntegrityError if the files are broken or not this model's.
    """
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise InputError("folder has no config.json of a Wan VAE", where=str(folder))
    try:
        vae, report = AutoencoderKLWan.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataIntegrityError(f"Wan VAE does not load: {first}", where=str(folder)) from None
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            what = f"Wan VAE has {kind.replace('_', ' ')}"
            raise DataIntegrityError(what, value=sorted(report[kind])[:5], where=str(folder))
    if vae.config.patch_size is not None or vae.config.is_residual:
        raise DataIntegrityError("this is Wan2.2's VAE, not Wan2.1's", where=str(folder))
    return WanVae(vae.to(device))
