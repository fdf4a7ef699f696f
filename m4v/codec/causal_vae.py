"""The causal video VAE behind the codec interface, with weights from a local folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m4v.codec.config import CausalVaeConfig
from m4v.codec.constants import PYRAMID_CONSTANTS
from m4v.codec.interface import Frames, Latent, Moments
from m4v.codec.pixels import as_tensor, check_frames, check_latents, to_frames, to_unit
from m4v.codec.shape import CHANNELS, TEMPORAL, latent_shape
from m4v.core.canonical import digest_file, digest_json
from m4v.core.errors import ConfigError
from m4v.devices import DTYPES
from m4v.kernels import kernel_set
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.posterior import Posterior
from m4v.vae.weights import WEIGHTS, load_vae

ALGORITHM = 1  # raise it when the same weights come to mean other latents


def open_causal_vae(config: CausalVaeConfig, folders: Mapping[str, Path], device: str) -> CausalVaeCodec:
    """Loads the weights; see `m4v.codec.open_codec` for the errors."""
    if config.weights not in folders:
        raise ConfigError(
            "codec needs weights that are not at hand", value=config.weights, where="codec.weights",
            next_step="m4v weights import, then name the entry in the recipe's weights section",
        )  # fmt: skip
    folder = folders[config.weights]
    vae = load_vae(folder, device, DTYPES[config.dtype])
    if vae.config.latent_channels != CHANNELS:
        raise ConfigError(
            f"codec needs a VAE of {CHANNELS} latent channels", value=vae.config.latent_channels, where=str(folder)
        )
    return CausalVaeCodec(config, vae, digest_file(folder / WEIGHTS))


class CausalVaeCodec:
    """`LatentCodec` of `CausalVaeConfig`; see the interface for shapes and errors.

    Keeps no state between calls. Input may lie on any device; `weights_digest` is the sha256 of the weights.
    """

    time_stride = TEMPORAL
    constants = PYRAMID_CONSTANTS

    def __init__(self, config: CausalVaeConfig, vae: CausalVideoVae, weights_digest: str) -> None:
        self._config, self._vae, self._weights_digest = config, vae, weights_digest

    @cached_property
    def digest(self) -> str:
        """Over config, architecture and weights, not over names and places. The kind of device and, where it is not
        torch's, the kernel of the norms count: they round in their own way."""
        config = {key: value for key, value in self._config.canonical().items() if key != "weights"}
        norm = kernel_set(self.device.type)["norm"]
        return digest_json(
            {
                "config": config,
                "algorithm": ALGORITHM,
                "architecture": self._vae.config.canonical(),
                "weights": self._weights_digest,
                "device": self.device.type,
                **({"norm": norm} if norm != "torch" else {}),
            }
        )

    def encode(self, frames: Frames) -> Latent:
        return _to_numpy(self._posterior(frames).mean)

    def encode_moments(self, frames: Frames) -> Moments:
        posterior = self._posterior(frames)
        return Moments(_to_numpy(posterior.mean), _to_numpy(posterior.logvar) if self._config.logvar else None)

    @property
    def device(self) -> torch.device:
        return self._vae.quant_conv.conv.weight.device

    def encode_uploaded(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """`encode_moments` of a uint8 tensor (T, H, W, 3) that may lie on the device already; the moments stay
        there, and on CUDA they may still be under way when this returns."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {tuple(frames.shape)}")
        posterior = self._posterior_of(frames)
        return posterior.mean[0], posterior.logvar[0] if self._config.logvar else None

    def _posterior(self, frames: Frames) -> Posterior:
        check_frames(frames)
        # Stays bytes, and here, until the network takes a chunk.
        return self._posterior_of(torch.from_numpy(np.ascontiguousarray(frames)))

    def _posterior_of(self, frames: Tensor) -> Posterior:
        latent_shape(*frames.shape[:3])
        with torch.no_grad():
            return self._vae.encode(
                frames.permute(3, 0, 1, 2)[None], window=self._config.encode_window, tile=self._config.tile
            )

    def decode(self, latent: Latent) -> Frames:
        with torch.no_grad():
            decoded = self._vae.decode(
                as_tensor(latent)[None], window=self._config.decode_window, tile=self._config.tile
            )
        return np.concatenate([to_frames(to_unit(part)[0]) for part in decoded.split(TEMPORAL, dim=2)])

    def decode_stream(self, latents: Iterable[Latent | Tensor]) -> Iterator[Frames]:
        pieces = (as_tensor(latent)[None] for latent in latents)
        for frames in self._vae.decode_stream(pieces, window=self._config.decode_window, tile=self._config.tile):
            yield to_frames(to_unit(frames)[0])

    def decode_tensor(self, latents: Tensor, context: int = 0) -> Tensor:
        """As the interface says. Where gradients are recorded, latents after the context are decoded at once and
        block by block again in the backward pass; else in chunks."""
        check_latents(latents, context)
        decoded = self._vae.decode_after(
            latents, context, window=self._config.decode_window, tile=self._config.tile,
            recompute=torch.is_grad_enabled() and latents.requires_grad,
        )  # fmt: skip
        return to_unit(decoded).to(latents.device)


def _to_numpy(latent: Tensor) -> Latent:
    return np.ascontiguousarray(latent[0].float().cpu().numpy())
