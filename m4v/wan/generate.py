"""Videos from a Wan model: `WanGenerator.open("checkpoint", parts="Wan2.1-T2V-1.3B-Diffusers").generate("a cat")`.

What a video looks like depends on the weights, its own prompt, negative prompt, seed, size and sampler alone:
each is sampled in a batch of its own, on one thread where the device is the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m4v.checkpoint import CONFIG
from m4v.codec.interface import Frames
from m4v.config import Dtype, default_dtype
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.devices import DTYPES, usable_device
from m4v.sampling import Video
from m4v.text.interface import TextEncoder, TextFeatures
from m4v.wan.checkpoint import load_wan
from m4v.wan.config import WanSamplerConfig
from m4v.wan.published import load_published
from m4v.wan.sampler import WanSampler
from m4v.wan.text import open_umt5
from m4v.wan.transformer import WanTransformer
from m4v.wan.vae import WanVae, open_wan_vae


class WanGenerator:
    """A transformer with the VAE and the text encoder that Wan2.1 publishes."""

    def __init__(self, model: WanTransformer, vae: WanVae, encoder: TextEncoder, threads: int | None = 1) -> None:
        """Raises ConfigError when the three do not fit together."""
        self.model, self.vae, self.encoder = model.eval(), vae, encoder
        if vae.vae.config.z_dim != model.wan.latent_channels:
            raise ConfigError(f"the VAE has {vae.vae.config.z_dim} channels", value=model.wan.latent_channels)
        if threads is not None:
            torch.set_num_threads(threads)

    @classmethod
    def open(
        cls,
        transformer: str | Path,
        *,
        parts: str | Path | None = None,
        ema: bool = True,
        device: str = "cpu",
        dtype: Dtype | None = None,
        threads: int | None = 1,
    ) -> WanGenerator:
        """Load a checkpoint of ours, or a folder that Wan published in either layout.

        - parts: folder with `vae`, `text_encoder` and a tokenizer, in diffusers' layout, as `m4v weights
          import` leaves them too; None means `transformer`.
        - ema: take a checkpoint's averaged weights when there are some.
        - dtype: of transformer and text encoder; None means bfloat16 on a GPU and float32 on the CPU.
        - threads: given to torch.set_num_threads, since a sum on several threads may round otherwise; None leaves
          torch as it is.

        Raises InputError for a folder that is none or lacks a part, ConfigError for a device that is none,
        DataIntegrityError for weights that are damaged or of another model.
        """
        usable_device(device)
        chosen = DTYPES[dtype or default_dtype(device)]
        folder, rest = Path(transformer), Path(parts or transformer)
        for path in (folder, rest):
            if not path.is_dir():
                raise InputError("folder does not exist", value=str(path))
        vae = open_wan_vae(rest, device=device)  # float32 as Wan decodes: bfloat16 shows in flat areas
        if _is_checkpoint(folder):
            model, _ = load_wan(folder.joinpath, ema=ema, dtype=chosen, device=device)
        else:
            model = load_published(folder, chosen, device)
        encoder = open_umt5(rest, model.wan.text_slots, chosen, device)
        return cls(model, vae, encoder, threads)

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        frames: int = 81,
        height: int = 720,
        width: int = 1280,
        fps: float = 16.0,
        negative: str | None = None,
        sampler: WanSamplerConfig | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Video:
        """One whole video in memory (`stream` gives it in pieces); the defaults are Wan2.1's at 720p.

        `negative` None means the sampler's own. `on_step(done, total)` follows the denoising. The latent that
        comes back is un-normalised. Raises as `latents` does.
        """
        latent = self.latents(prompt, seed, (frames, height, width), negative, sampler, on_step)
        return Video(np.concatenate(list(self.stream(latent))), fps, latent.numpy())

    @torch.no_grad()
    def latents(
        self,
        prompt: str,
        seed: int,
        size: tuple[int, int, int],
        negative: str | None = None,
        sampler: WanSamplerConfig | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Un-normalised codec latent (c, t, h, w), float32 on the CPU, of a clip of `size` frames, height, width.

        Raises InputError for a size that cannot be, DataIntegrityError when the model's numbers are not finite.
        """
        config = sampler or WanSamplerConfig()
        shape = self.vae.latent_shape(*size)
        words = None
        if config.guidance > 1:
            words = self._features(config.negative_prompt if negative is None else negative)
        made = WanSampler(self.model, config).sample(self._features(prompt), words, shape, [seed], on_step=on_step)
        if not bool(made.isfinite().all()):
            raise DataIntegrityError(
                "model made latents that are not finite", value=prompt, where=f"seed {seed}",
                next_step="look at the loss curves of the checkpoint's training",
            )  # fmt: skip
        return self.vae.denormalise(made[0].cpu())

    def stream(self, latent: Tensor) -> Iterator[Frames]:
        """uint8 RGB frames (n, H, W, 3) of a codec latent (c, t, h, w), piece by piece."""
        return self.vae.decode_stream(latent.split(1, dim=1))

    def _features(self, text: str) -> TextFeatures:
        found = self.encoder.encode([text])
        if found.embedding.shape[-1] != self.model.wan.text_dim:
            raise ConfigError(
                f"the text encoder gives {found.embedding.shape[-1]} channels", value=self.model.wan.text_dim,
                where="text_dim",
            )  # fmt: skip
        return found


def _is_checkpoint(folder: Path) -> bool:
    """Whether the folder's config is ours: a published one has the sizes at its top, or is not there at all."""
    try:
        return "model" in json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False
