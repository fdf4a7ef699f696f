"""Videos from a checkpoint of the Wan family, with the codec and the text encoder that its config names.

What a video looks like depends on the checkpoint, its own prompt, negative prompt, seed and VideoConfig alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from m4v.codec import open_codec
from m4v.codec.interface import Frames, Latent
from m4v.codec.shape import latent_shape
from m4v.config import Dtype, VideoConfig, default_dtype
from m4v.core.errors import ConfigError, InputError
from m4v.devices import DTYPES, usable_device
from m4v.flow.latents import denormalise
from m4v.image_io import Picture
from m4v.model.layout import forget_layouts
from m4v.sampling import check_finite, codec_config, memory_told, text_encoder_config
from m4v.text import open_text_encoder
from m4v.wan.checkpoint import load_wan
from m4v.wan.sampler import WanSampler
from m4v.wan_flow_config import WanSamplerConfig


class WanCheckpointSampler:
    """`VideoSampler` of a Wan checkpoint: all latent frames are made at once, then decoded one after the other."""

    def __init__(
        self,
        path_of: Callable[[str], Path],
        *,
        ema: bool = True,
        device: str = "cpu",
        dtype: Dtype | None = None,
        folders: Mapping[str, Path] | None = None,
        threads: int | None = 1,
    ) -> None:
        """Options and errors as of `m4v.sampling.CheckpointSampler.open`."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = usable_device(device)
        chosen = DTYPES[dtype or default_dtype(device)]
        model, self.checkpoint = load_wan(path_of, ema=ema, dtype=chosen, device=device)
        self.model = model.eval()
        self.codec = open_codec(codec_config(self.checkpoint), folders, device)
        self.encoder = open_text_encoder(text_encoder_config(self.checkpoint), folders, device)

    @property
    def launched(self) -> dict[str, str | int]:
        """All frames are made at once, one forward after the other, and decoded then."""
        return {}

    def stream(
        self,
        prompt: str,
        seed: int,
        config: VideoConfig,
        *,
        negative: str | None = None,
        image: Picture | None = None,
        on_latent: Callable[[int, Latent], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Frames]:
        """As `VideoSampler` says; `on_progress` counts the sampler's steps, before the first frame is decoded.

        Raises ConfigError for the sampler of another family, InputError for a first frame, which the text-to-video
        model does not take, DataIntegrityError when the model's numbers are not finite.
        """
        if image is not None:
            raise InputError("the Wan text-to-video model takes no first frame", where="image")
        sampler = config.sampler
        if not isinstance(sampler, WanSamplerConfig):
            raise ConfigError(
                "the checkpoint is of the Wan family and the sampler is the pyramid's", where="sampler.kind",
                next_step="set sampler.kind to wan",
            )  # fmt: skip
        latents = self._latents(prompt, seed, config, sampler, negative, on_latent, on_progress)
        return memory_told(
            self.codec.decode_stream(latents), f"{config.frames} frames of {config.width}x{config.height}"
        )

    def _latents(
        self,
        prompt: str,
        seed: int,
        config: VideoConfig,
        sampler: WanSamplerConfig,
        negative: str | None,
        on_latent: Callable[[int, Latent], None] | None,
        on_progress: Callable[[int, int], None] | None,
    ) -> Iterator[Latent]:
        size = latent_shape(config.frames, config.height, config.width, self.codec.time_stride)
        words = self.encoder.encode([sampler.negative_prompt if negative is None else negative])
        made = WanSampler(self.model, sampler).sample(
            self.encoder.encode([prompt]), words if sampler.guidance > 1 else None, size, [seed], on_step=on_progress
        )
        forget_layouts()
        check_finite(made.float().cpu().numpy(), prompt, f"seed {seed}")
        for index, frame in enumerate(denormalise(made.float().cpu(), self.codec.constants)[0].split(1, dim=1)):
            latent: Latent = frame.contiguous().numpy()
            if on_latent is not None:
                on_latent(index, latent)
            yield latent
