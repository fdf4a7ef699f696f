"""Videos from a checkpoint: `CheckpointSampler.open("checkpoint").generate("a red circle", seed=1).save("a.mp4")`.

What a video looks like depends on the checkpoint, its own prompt, negative prompt, image, seed and VideoConfig
alone: each is sampled in a batch of its own, on one thread where the device is the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from m4v.checkpoint import load_checkpoint
from m4v.codec import open_codec
from m4v.codec.config import CodecConfig
from m4v.codec.interface import Frames, Latent
from m4v.codec.shape import latent_shape
from m4v.config import Dtype, SamplerConfig, VideoConfig, default_dtype
from m4v.core.artifacts import Artifact
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.devices import DTYPES, usable_device
from m4v.family import AnyCheckpoint, read_checkpoint_config
from m4v.flow.sampler import stream
from m4v.flow.schedule import PyramidSchedule
from m4v.image_io import Picture, cover, read_image
from m4v.launches import OVERLAP_VARIABLE
from m4v.launching import launching_of
from m4v.model.layout import forget_layouts
from m4v.text import open_text_encoder
from m4v.text.config import TextEncoderConfig
from m4v.text.interface import TextFeatures
from m4v.video_io import write_mp4
from m4v.wan.config import WanCheckpointConfig

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Video:
    """uint8 RGB `frames` (T, H, W, 3), frames a second, and the `latent` float32 (16, t, h, w) they come from."""

    frames: Frames
    fps: float
    latent: Latent

    def save(self, path: str | Path, crf: int = 12) -> Path:
        """Write an H.264 MP4 file; a reader sees the whole file or none."""
        write_mp4(Path(path), self.frames, self.fps, crf)
        return Path(path)


class VideoSampler(Protocol):
    """A loaded checkpoint of either family; `open_sampler` opens one."""

    @property
    def launched(self) -> dict[str, str | int]:
        """How it gives its work to the device, and how often it did; for the run's record."""
        ...

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
        """See `CheckpointSampler.stream`. `on_progress(done, total)` follows the work: latent frames where they are
        made one after the other, steps of the sampler where all are made at once."""
        ...


def open_sampler(
    path_of: Callable[[str], Path],
    *,
    ema: bool = True,
    device: str = "cpu",
    dtype: Dtype | None = None,
    folders: Mapping[str, Path] | None = None,
    threads: int | None = 1,
) -> VideoSampler:
    """The sampler of the checkpoint's family; options and errors as of `CheckpointSampler.open`."""
    if isinstance(read_checkpoint_config(path_of("config.json")), WanCheckpointConfig):
        from m4v.wan.sampling import WanCheckpointSampler

        return WanCheckpointSampler(path_of, ema=ema, device=device, dtype=dtype, folders=folders, threads=threads)
    return CheckpointSampler(path_of, ema=ema, device=device, dtype=dtype, folders=folders, threads=threads)


class CheckpointSampler:
    """A loaded checkpoint with the codec and the text encoder that its config names."""

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
        """`path_of` finds the checkpoint's files by name (see `open` for the rest)."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = usable_device(device)
        self.dtype = DTYPES[dtype or default_dtype(device)]
        model, self.checkpoint = load_checkpoint(path_of, ema=ema, device=device)
        self.model = (model if self.dtype == torch.float32 else model.cast(self.dtype)).eval()
        self.schedule = PyramidSchedule(self.checkpoint.schedule)
        self.codec = open_codec(codec_config(self.checkpoint), folders, device)
        self.encoder = open_text_encoder(text_encoder_config(self.checkpoint), folders, device)
        self._negative: tuple[str, TextFeatures] | None = None
        self._launching = launching_of(self.model, self.device)

    @property
    def launched(self) -> dict[str, str | int]:
        """How this sampler gives its work to the GPU, and how many forwards went which way so far."""
        return self._launching.report()

    @classmethod
    def open(
        cls,
        checkpoint: str | Path | Artifact,
        *,
        ema: bool = True,
        device: str = "cpu",
        dtype: Dtype | None = None,
        folders: Mapping[str, str | Path] | None = None,
        threads: int | None = 1,
    ) -> CheckpointSampler:
        """Load a checkpoint folder or artifact.

        - ema: take the averaged weights when there are some.
        - dtype: of the transformer; None means bfloat16 on a GPU and float32 on the CPU.
        - folders: where the imported weights lie that codec and text encoder name (`weights: NAME`).
        - threads: given to torch.set_num_threads, since a sum on several threads may round otherwise; None leaves
          torch as it is.

        Raises InputError for a folder that is none, ConfigError for a device that is none or weights without
        folder, DataIntegrityError for a checkpoint that is damaged or names a codec or encoder unknown here.
        """
        if isinstance(checkpoint, Artifact):
            path_of: Callable[[str], Path] = checkpoint.path
        else:
            directory = Path(checkpoint)
            if not directory.is_dir():
                raise InputError("checkpoint folder does not exist", value=str(checkpoint))
            path_of = directory.joinpath
        local = {name: Path(folder) for name, folder in (folders or {}).items()}
        return cls(path_of, ema=ema, device=device, dtype=dtype, folders=local, threads=threads)

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        frames: int = 121,
        height: int = 768,
        width: int = 1280,
        fps: float = 24.0,
        negative: str | None = None,
        image: str | Path | Picture | None = None,
        sampler: SamplerConfig | None = None,
        on_frame: Callable[[int], None] | None = None,
    ) -> Video:
        """One whole video in memory (`stream` gives a long one in pieces). The defaults are the 768p model's five
        seconds. `image`, a file or uint8 RGB (H, W, 3), becomes the first frame. `on_frame(n)` is called when n
        latent frames are done. Raises ConfigError for a size that cannot be (`VideoConfig`), and as `stream` does.
        """
        size = {"frames": frames, "height": height, "width": width, "fps": fps}
        config = parse(VideoConfig, {**size, "sampler": sampler or SamplerConfig()}, "generate")
        picture = image if image is None or isinstance(image, np.ndarray) else read_image(Path(image))
        latents: list[Latent] = []

        def seen(index: int, latent: Latent) -> None:
            latents.append(latent)
            if on_frame is not None:
                on_frame(index + 1)

        chunks = list(self.stream(prompt, seed, config, negative=negative, image=picture, on_latent=seen))
        return Video(np.concatenate(chunks), config.fps, np.concatenate(latents, axis=1))

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
        """uint8 RGB frames (n, H, W, 3) in order, decoded as soon as their latent is done: neither frames nor
        full-size latents are kept, so memory does not grow with length.

        `negative` None means the sampler's own. `image` (H, W, 3) of any size becomes the first frame: covered,
        cut around its centre, encoded to the posterior's mean (PyramidFlow takes a sample of it, so that its
        first frame differs a little with every seed); later frames then have `guidance_image`.
        `on_latent(index, latent)` sees each latent frame (16, 1, h, w), de-normalised, before it is decoded, and
        `on_progress(done, total)` counts them. Raises DataIntegrityError when the model's numbers are not finite,
        ConfigError when the GPU has too little memory.
        """
        total = latent_shape(config.frames, config.height, config.width, self.codec.time_stride)[0]

        def seen(latents: Iterator[Latent]) -> Iterator[Latent]:
            for index, latent in enumerate(latents):
                if on_latent is not None:
                    on_latent(index, latent)
                if on_progress is not None:
                    on_progress(index + 1, total)
                yield latent

        made = self._latents(prompt, seed, config, negative, image)
        overlaps = self._launching.overlaps(config.height * config.width)
        if overlaps:
            chunks = self._launching.beside(made, lambda latents: self.codec.decode_stream(seen(latents)))
        else:
            chunks = self.codec.decode_stream(seen(made))
        return memory_told(chunks, f"{config.frames} frames of {config.width}x{config.height}", overlaps)

    def _latents(
        self,
        prompt: str,
        seed: int,
        config: VideoConfig,
        negative: str | None,
        image: Picture | None,
    ) -> Generator[Latent, None, None]:
        sampler = config.sampler
        if not isinstance(sampler, SamplerConfig):
            raise ConfigError(
                "the checkpoint's model has a pyramid and the sampler is of another family", value=sampler.kind,
                where="sampler.kind", next_step="leave kind out of the sampler",
            )  # fmt: skip
        first = None
        if image is not None:
            sampler = sampler.model_copy(update={"guidance_later": sampler.guidance_image})
            first = torch.from_numpy(self.codec.encode(cover(image, config.height, config.width)[None]))[None]
        made = stream(
            self._launching.model, self.schedule, sampler, self._features(prompt + sampler.prompt_suffix),
            self._negative_features(sampler.negative_prompt if negative is None else negative),
            latent_shape(config.frames, config.height, config.width, self.codec.time_stride), [seed],
            channels=self.checkpoint.model.latent_channels, first_frame=first, constants=self.codec.constants,
        )  # fmt: skip
        for index, frame in enumerate(made):
            forget_layouts()
            latent = frame[0].float().cpu().numpy()
            check_finite(latent, prompt, f"seed {seed}, latent frame {index}")
            yield latent

    def _features(self, text: str) -> TextFeatures:
        found = self.encoder.encode([text]).to(self.device)
        return TextFeatures(found.embedding.to(self.dtype), found.mask, found.pooled.to(self.dtype))

    def _negative_features(self, text: str) -> TextFeatures:
        """Most videos share it, so the last one is kept."""
        if self._negative is None or self._negative[0] != text:
            self._negative = (text, self._features(text))
        return self._negative[1]


def check_finite(latent: Latent, prompt: str, where: str) -> None:
    """Raises DataIntegrityError for latents that are not."""
    if not np.isfinite(latent).all():
        raise DataIntegrityError(
            "model made latents that are not finite", value=prompt, where=where,
            next_step="look at the loss curves of the checkpoint's training",
        )  # fmt: skip


def memory_told(chunks: Iterator[Frames], what: str, overlaps: bool = False) -> Iterator[Frames]:
    """The chunks; raises ConfigError naming `what` was made when the GPU's memory ends. `overlaps`: decoding took some
    of it beside denoising."""
    try:
        yield from chunks
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU has too little memory for {what} ({str(error).partition('.')[0]})",
            next_step=(f"set {OVERLAP_VARIABLE}=off, " if overlaps else "")
            + "use fewer or smaller frames, bfloat16, a VAE codec with `tile`, or a larger GPU",
        ) from None


def codec_config(checkpoint: AnyCheckpoint) -> CodecConfig:
    """Raises DataIntegrityError when the checkpoint names no codec that is known here."""
    return _parse(TypeAdapter(CodecConfig), dict(checkpoint.codec), "codec")


def text_encoder_config(checkpoint: AnyCheckpoint) -> TextEncoderConfig:
    """Raises DataIntegrityError when the checkpoint names no text encoder that is known here."""
    return _parse(TypeAdapter(TextEncoderConfig), dict(checkpoint.text_encoder), "text_encoder")


def _parse(adapter: TypeAdapter[ConfigT], data: dict[str, object], section: str) -> ConfigT:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise DataIntegrityError(
            f"checkpoint names no usable {section}: {error.errors()[0]['msg']}", value=data, where="config.json"
        ) from None
