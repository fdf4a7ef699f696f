"""Wan2.1's causal video VAE behind the codec interface, with weights from a local folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m4v.codec.config import WanVaeConfig
from m4v.codec.constants import Affine, LatentConstants
from m4v.codec.interface import Frames, Latent, Moments
from m4v.codec.pixels import as_tensor, check_frames, check_latents
from m4v.codec.shape import CHANNELS, SPATIAL, WAN_TEMPORAL, latent_shape
from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError
from m4v.devices import DTYPES
from m4v.wan.vae import WanVae, open_wan_vae

ALGORITHM = 1  # raise it when the same weights come to mean other latents


def open_wan_codec(config: WanVaeConfig, folders: Mapping[str, Path], device: str) -> WanVaeCodec:
    """Loads the weights; see `m4v.codec.open_codec` for the errors."""
    if config.weights not in folders:
        raise ConfigError(
            "codec needs weights that are not at hand", value=config.weights, where="codec.weights",
            next_step="m4v weights import, then name the entry in the recipe's weights section",
        )  # fmt: skip
    vae = open_wan_vae(folders[config.weights], DTYPES[config.dtype], device)
    has = {"channels": int(vae.vae.config.z_dim), "time stride": vae.time_stride, "space stride": vae.space_stride}
    needs = {"channels": CHANNELS, "time stride": WAN_TEMPORAL, "space stride": SPATIAL}
    if has != needs:
        raise ConfigError("this VAE is not of Wan2.1's sizes", value=has, where=str(folders[config.weights]))
    return WanVaeCodec(config, vae)


class WanVaeCodec:
    """`LatentCodec` of `WanVaeConfig`; see the interface for shapes and errors. Keeps no state between calls.

    Causal: the network takes the first frame, then four at a time, and each convolution looks back only.
    """

    time_stride = WAN_TEMPORAL

    def __init__(self, config: WanVaeConfig, vae: WanVae) -> None:
        self._config, self._vae = config, vae
        published = vae.vae.config
        affine = Affine(tuple(map(float, published.latents_mean)), tuple(map(float, published.latents_std)))
        self.constants = LatentConstants(affine, affine)

    @cached_property
    def digest(self) -> str:
        """Over config, weights and published constants, not over names and places; the kind of device rounds in its
        own way and counts."""
        config = {key: value for key, value in self._config.canonical().items() if key != "weights"}
        return digest_json(
            {"config": config, "algorithm": ALGORITHM, "vae": self._vae.digest, "device": self.device.type}
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self._vae.vae.device)

    def encode(self, frames: Frames) -> Latent:
        return self.encode_moments(frames).mean

    def encode_moments(self, frames: Frames) -> Moments:
        check_frames(frames)
        mean, logvar = self.encode_uploaded(torch.from_numpy(np.ascontiguousarray(frames)))
        return Moments(_to_numpy(mean), None if logvar is None else _to_numpy(logvar))

    def encode_uploaded(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `DeviceCodec` says. Raises ValueError for sizes it cannot take."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {tuple(frames.shape)}")
        count, height, width, _ = frames.shape
        latent_shape(count, height, width, WAN_TEMPORAL)
        mean, logvar = self._vae.posterior(frames)
        return mean, logvar if self._config.logvar else None

    def decode(self, latent: Latent) -> Frames:
        with torch.no_grad():
            return self._vae.decode(as_tensor(latent))

    def decode_stream(self, latents: Iterable[Latent | Tensor]) -> Iterator[Frames]:
        return self._vae.decode_stream(piece for latent in latents for piece in as_tensor(latent).split(1, dim=1))

    def decode_tensor(self, latents: Tensor, context: int = 0) -> Tensor:
        check_latents(latents, context)
        return self._vae.decode_tensor(latents, context).to(latents.device)


def _to_numpy(latent: Tensor) -> Latent:
    return np.ascontiguousarray(latent.float().cpu().numpy())
