"""One video from a checkpoint: text features, latents, frames. What a video looks like depends on its own
prompt and seed alone: each is sampled in a batch of its own, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError

from eval.config import GenerateConfig
from m4v.checkpoint import CheckpointConfig, load_checkpoint
from m4v.codec import open_codec
from m4v.codec.config import CodecConfig
from m4v.core.errors import DataIntegrityError
from m4v.flow.sampler import generate
from m4v.flow.schedule import PyramidSchedule
from m4v.text import open_text_encoder
from m4v.text.config import TextEncoderConfig

CODEC_SPACE, CODEC_TIME = 8, 8
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Sample:
    """uint8 frames (T, H, W, 3) and the latent (16, t, h, w), float32, they were decoded from."""

    frames: npt.NDArray[np.uint8]
    latent: npt.NDArray[np.float32]


class CheckpointSampler:
    """A loaded checkpoint with the codec and the text encoder that its config names."""

    def __init__(self, path_of: Callable[[str], Path], config: GenerateConfig, device: str = "cpu") -> None:
        # A second thread could sum in another order; parallelism is processes (`generate` stage).
        torch.set_num_threads(1)
        self.config, self.device = config, torch.device(device)
        self.model, self.checkpoint = load_checkpoint(path_of, ema=config.ema, device=device)
        self.model.eval()
        self.schedule = PyramidSchedule(self.checkpoint.schedule)
        self.codec = open_codec(codec_config(self.checkpoint))
        self.encoder = open_text_encoder(text_encoder_config(self.checkpoint))
        self.negative = self.encoder.encode([config.sampler.negative_prompt]).to(self.device)

    def sample(self, prompt: str, seed: int, on_frame: Callable[[int], None] | None = None) -> Sample:
        """`on_frame(n)` is called when n latent frames of the video are done."""
        config = self.config
        shape = (
            (config.frames - 1) // CODEC_TIME + 1,
            config.height // CODEC_SPACE,
            config.width // CODEC_SPACE,
        )
        positive = self.encoder.encode([prompt + config.sampler.prompt_suffix]).to(self.device)
        latents = generate(
            self.model, self.schedule, config.sampler, positive, self.negative, shape, [seed],
            channels=self.checkpoint.model.latent_channels,
            on_frame=None if on_frame is None else (lambda index, _: on_frame(index + 1)),
        )  # fmt: skip
        latent = latents[0].float().cpu().numpy()
        if not np.isfinite(latent).all():
            raise DataIntegrityError(
                "model made latents that are not finite", value=prompt, where=f"seed {seed}",
                next_step="look at the loss curves of the checkpoint's training",
            )  # fmt: skip
        return Sample(frames=self.codec.decode(latent), latent=latent)


def codec_config(checkpoint: CheckpointConfig) -> CodecConfig:
    """Raises DataIntegrityError when the checkpoint names no codec that is known here."""
    return _parse(TypeAdapter(CodecConfig), dict(checkpoint.codec), "codec")


def text_encoder_config(checkpoint: CheckpointConfig) -> TextEncoderConfig:
    """Raises DataIntegrityError when the checkpoint names no text encoder that is known here."""
    return _parse(TypeAdapter(TextEncoderConfig), dict(checkpoint.text_encoder), "text_encoder")


def _parse(adapter: TypeAdapter[ConfigT], data: dict[str, object], section: str) -> ConfigT:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise DataIntegrityError(
            f"checkpoint names no usable {section}: {error.errors()[0]['msg']}", value=data, where="config.json"
        ) from None
