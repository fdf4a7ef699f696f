"""Wan's causal video VAE (`diffusers.AutoencoderKLWan`) as a latent codec, four frames to a latent.

Codec latents are un-normalised, as everywhere; the transformer works on normalised ones, from which the
published mean and deviation of each channel are taken out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from torch import Tensor

from m4v.codec.interface import Frames, Latent, Moments
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError, InputError

ALGORITHM = 1  # raise it when the same weights come to mean other latents or frames


class WanVae:
    """`LatentCodec` but for its time stride: `time_stride` frames share a latent after the first (4, not 8).

    The network is frozen. `space_stride` pixels make a latent place.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.time_stride = int(vae.config.scale_factor_temporal)
        self.space_stride = int(vae.config.scale_factor_spatial)
        self._mean = torch.tensor(vae.config.latents_mean).reshape(-1, 1, 1, 1)
        self._deviation = torch.tensor(vae.config.latents_std).reshape(-1, 1, 1, 1)

    @cached_property
    def digest(self) -> str:
        """Identity from the config and the weights; reads every weight once."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.vae.state_dict().items()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        constants = {"mean": list(self.vae.config.latents_mean), "deviation": list(self.vae.config.latents_std)}
        return digest_json({"kind": "wan_vae", "algorithm": ALGORITHM, "weights": sha.hexdigest(), **constants})

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of a clip. Raises InputError for a size that has no latents or no whole tokens."""
        stride, step = self.time_stride, 2 * self.space_stride  # a token is two latent places wide
        if frames < 1 or (frames - 1) % stride:
            near = max(frames - 1, 0) // stride * stride + 1
            raise InputError(f"a clip needs {stride} k + 1 frames", value=frames, next_step=f"ask for {near}")
        if height < step or width < step or height % step or width % step:
            raise InputError(f"height and width must be multiples of {step}", value=f"{height} x {width}")
        return (frames - 1) // stride + 1, height // self.space_stride, width // self.space_stride

    def normalise(self, latents: Tensor) -> Tensor:
        """Codec latents (…, c, t, h, w) to those of the transformer, in the type of `latents`."""
        return (latents - self._mean.to(latents)) / self._deviation.to(latents)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of `normalise`."""
        return latents * self._deviation.to(latents) + self._mean.to(latents)

    def encode(self, frames: Frames) -> Latent:
        """Mean latent, float32 (c, t, h, w), of uint8 RGB frames (T, H, W, 3) with T = 4(t-1)+1.

        Raises ValueError for sizes it cannot take.
        """
        return self.encode_moments(frames).mean

    def encode_moments(self, frames: Frames) -> Moments:
        """Mean and log-variance of the posterior. Raises ValueError for sizes it cannot take."""
        count, height, width, _ = frames.shape
        if (count - 1) % self.time_stride or height % self.space_stride or width % self.space_stride:
            raise ValueError(f"{count} frames of {height} x {width} have no whole latents")
        mean, logvar = self.posterior(torch.from_numpy(frames))
        return Moments(mean.float().cpu().numpy(), logvar.float().cpu().numpy())

    @torch.no_grad()
    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (c, t, h, w), on the VAE's device, of uint8 frames (T, H, W, 3) on any."""
        pixels = frames.permute(3, 0, 1, 2)[None].to(self.vae.device, self.vae.dtype)
        found = self.vae.encode(pixels / 127.5 - 1).latent_dist
        return found.mean[0], found.logvar[0]

    def decode(self, latent: Latent | Tensor) -> Frames:
        """uint8 RGB frames (T, H, W, 3) of one latent (c, t, h, w)."""
        pieces = torch.as_tensor(latent).split(1, dim=1)
        return np.concatenate(list(self.decode_stream(pieces)))

    def decode_stream(self, latents: Iterable[Latent | Tensor]) -> Iterator[Frames]:
        """Frames (1, H, W, 3), then (time_stride, H, W, 3) each, as soon as their latents (c, 1, h, w) have come.

        Only the decoder's window of past features is kept, so memory does not grow with length.
        """
        pixels = self._decoded(torch.as_tensor(latent)[None] for latent in latents)
        while (piece := _next_without_gradient(pixels)) is not None:
            scaled = ((piece[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            frames: Frames = scaled.permute(1, 2, 3, 0).cpu().numpy()
            yield frames

    def decode_tensor(self, latents: Tensor, context: int = 0) -> Tensor:
        """(b, c, t, h, w) to (b, 3, T, H, W) in [0, 1], fp32, differentiable.

        With a context, only the frames of the latents after the first `context` come back, decoded as part of
        the whole but with gradients to these latents alone. The gradient goes straight through the final
        clamp, so saturated pixels keep theirs. Raises ValueError for a context that leaves nothing.
        """
        if not 0 <= context < latents.shape[2]:
            raise ValueError(f"context {context} of {latents.shape[2]} latents")
        pixels = self._decoded(iter(latents.split(1, dim=2)))
        for _ in range(context):
            _next_without_gradient(pixels)
        whole = (torch.cat(list(pixels), dim=2).float() + 1) / 2
        return whole + (whole.clamp(0, 1) - whole).detach()

    def _decoded(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pixels around [-1, 1] of each latent frame (b, c, 1, h, w) in turn."""
        vae = self.vae
        # Each causal convolution of the decoder keeps its past here, in the order of their calls.
        past: list[Tensor | str | None] = [None] * vae._cached_conv_counts["decoder"]
        for number, latent in enumerate(latents):
            mixed = vae.post_quant_conv(latent.to(vae.device, vae.dtype))
            yield vae.decoder(mixed, feat_cache=past, feat_idx=[0], first_chunk=number == 0)


@torch.no_grad()
def _next_without_gradient(pixels: Iterator[Tensor]) -> Tensor | None:
    return next(pixels, None)


def open_wan_vae(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanVae:
    """The VAE of a local folder in diffusers' layout (`config.json` and safetensors, or their `vae` subfolder).

    Raises InputError if there is none, DataIntegrityError if the files are broken or not this model's.
    """
    if (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise InputError("folder has no config.json of a Wan VAE", where=str(folder))
    name = next((path.name for path in sorted(folder.glob("*.safetensors"))), None)
    try:
        vae, report = AutoencoderKLWan.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataIntegrityError(f"Wan VAE does not load: {first}", value=name, where=str(folder)) from None
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            what = f"Wan VAE has {kind.replace('_', ' ')}"
            raise DataIntegrityError(what, value=sorted(report[kind])[:5], where=str(folder))
    if vae.config.patch_size is not None or vae.config.is_residual:
        raise DataIntegrityError("this is Wan2.2's VAE, not Wan2.1's", where=str(folder))
    return WanVae(vae.to(device))
