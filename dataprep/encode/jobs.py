"""Work on one clip, done wherever the engine says: decode, encode, keep the result in the item store.

Everything here is importable by name and takes picklable jobs; models open once a process.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataprep.buckets import Bucket
from dataprep.encode.clips import Crop
from dataprep.media.decode import decode_span, open_reader
from dataprep.media.geometry import Box, cover
from dataprep.media.geometry import crop as cut
from dataprep.media.images import read_image
from dataprep.media.location import MediaFile
from dataprep.media.sampling import sample_frames
from dataprep.quarantine import ItemError, Reason
from m4v.codec import open_codec
from m4v.codec.config import CodecConfig
from m4v.codec.interface import LatentCodec
from m4v.core.artifacts import ArtifactRef
from m4v.core.canonical import canonical_json
from m4v.core.config import FrozenModel, weights_names
from m4v.core.errors import DataIntegrityError
from m4v.core.items import ItemStore
from m4v.core.storage import Storage
from m4v.text import open_text_encoder
from m4v.text.config import TextEncoderConfig
from m4v.text.interface import TextEncoder
from m4v.video_io import encode_mp4

if TYPE_CHECKING:
    import torch

Frames = npt.NDArray[np.uint8]
Weights = tuple[tuple[str, ArtifactRef], ...]
STILL_FPS = 1.0  # rate of the one-frame video that shows an image
_LENGTH_BYTES = 8
_PSNR = struct.Struct("<dd")


@dataclass(frozen=True)
class ClipMedia:
    """Where a clip's pixels come from and the sizes to try, the longest first. `fps` is 0 for an image."""

    file: MediaFile
    first_frame: int
    end_frame: int
    crop: Crop | None
    fps: float
    buckets: tuple[Bucket, ...]
    deinterlace: bool = False


@dataclass(frozen=True)
class EncodeJob:
    """One clip; the keys name its items below the stores (the times of its frames have the latent's key). `weights`:
    imported ones, by name."""

    media: ClipMedia
    codec: CodecConfig
    latents_uri: str
    latent_key: str
    captions: tuple[str, ...]
    text_encoder: TextEncoderConfig
    texts_uri: str
    text_key: str
    times_uri: str
    weights: Weights = ()
    device: str = "cpu"


@dataclass(frozen=True)
class Encoded:
    """What became of a job: the latent's shape (t, h, w), and which of the two parts were found done."""

    shape: tuple[int, int, int]
    latent_hit: bool
    text_hit: bool


@dataclass(frozen=True)
class Reconstruction:
    """Source (left) and decoded latent (right) side by side as MP4 bytes, and how far apart they are."""

    mp4: bytes
    psnr_db: float
    first_frame_psnr_db: float


@lru_cache(maxsize=2)
def codec_of(config: CodecConfig, weights: Weights = (), device: str = "cpu") -> LatentCodec:
    return open_codec(config, _folders(config, weights), device)


@lru_cache(maxsize=2)
def text_encoder_of(config: TextEncoderConfig, weights: Weights = (), device: str = "cpu") -> TextEncoder:
    return open_text_encoder(config, _folders(config, weights), device)


def _folders(config: FrozenModel, weights: Weights) -> dict[str, Path]:
    """Local folders of the weights that `config` names; from a remote store they are fetched here."""
    return {name: ref.open().folder() for name, ref in weights if name in weights_names(config)}


@lru_cache(maxsize=4096)
def _check_once(file: MediaFile, path: Path, modified_ns: int, inode: int) -> None:
    file.check(path)


def checked_path(file: MediaFile) -> Path:
    """Local path of a listed file, its bytes compared with the listing once a process.

    Raises ItemError: missing_file, source_changed.
    """
    path = file.local()
    seen = path.stat()
    _check_once(file, path, seen.st_mtime_ns, seen.st_ino)
    return path


def read_frames(media: ClipMedia) -> tuple[Frames, Bucket]:
    """uint8 (T, H, W, 3) at the longest bucket that the file really fills; raises ItemError when none."""
    path = checked_path(media.file)
    if media.fps == 0:
        bucket = media.buckets[0]
        picture = read_image(path)
        picture = picture if media.crop is None else cut(picture, Box(*media.crop))
        return np.ascontiguousarray(cover(picture, bucket.height, bucket.width))[None], bucket
    for bucket in media.buckets:
        try:
            frames = decode_span(
                path, media.first_frame, bucket.frames, fps=media.fps, size=(bucket.height, bucket.width),
                crop=media.crop, end_frame=media.end_frame, deinterlace=media.deinterlace,
            )  # fmt: skip
        except ItemError as error:
            if error.reason == Reason.TOO_SHORT and bucket != media.buckets[-1]:
                continue
            raise
        return frames, bucket
    raise ItemError(Reason.TOO_SHORT, "clip fills no bucket")


def frame_times_us(media: ClipMedia, bucket: Bucket) -> list[int]:
    """Microseconds from the first presented frame of the file of each frame that `read_frames` gives at this bucket.

    No picture is decoded. Raises ItemError as `read_frames` does.
    """
    if media.fps == 0:
        return [0]
    index = open_reader(checked_path(media.file)).index
    chosen = sample_frames(index, media.first_frame, bucket.frames, media.fps, media.end_frame)
    return [index.microseconds(int(frame)) for frame in chosen]


def keep_times(job: EncodeJob, shape: tuple[int, int, int]) -> None:
    """Bring the times of a clip's frames into the store unless they are there; `shape` (t, h, w) of its latent tells
    which bucket it fills. Raises ItemError when its media are unusable."""
    store = ItemStore(Storage(job.times_uri))
    if store.get(job.latent_key) is None:
        bucket = next(b for b in job.media.buckets if b.latent == shape)
        store.put(job.latent_key, canonical_json(frame_times_us(job.media, bucket)))


def encode_clip(job: EncodeJob) -> Encoded:
    """Make the items of a clip unless they are there; raises ItemError when its media are unusable."""
    if not job.captions:
        raise ItemError(Reason.MISSING_CAPTION, "kept, but without a caption")
    latents, texts = ItemStore(Storage(job.latents_uri)), ItemStore(Storage(job.texts_uri))
    latent = latents.get(job.latent_key)
    latent_hit = latent is not None
    if latent is None:
        latent = latent_member(codec_of(job.codec, job.weights, job.device), read_frames(job.media)[0])
        latents.put(job.latent_key, latent)
    shape = latent_shape_of(latent)
    keep_times(job, shape)
    text_hit = texts.get(job.text_key) is not None
    if not text_hit:
        texts.put(job.text_key, text_member(text_encoder_of(job.text_encoder, job.weights, job.device), job.captions))
    return Encoded(shape, latent_hit, text_hit)


def latent_member(codec: LatentCodec, frames: Frames) -> bytes:
    """`KEY.latent.safetensors`: `mean` and, where the codec's config asks for it, `logvar`; bf16 (16, t, h, w),
    un-normalised."""
    import torch

    mean, logvar = codec.encode_moments(frames)
    return pack_latent(torch.from_numpy(mean), None if logvar is None else torch.from_numpy(logvar))


def pack_latent(mean: torch.Tensor, logvar: torch.Tensor | None) -> bytes:
    """The member's bytes from moments (16, t, h, w) on any device."""
    import torch
    from safetensors.torch import save

    moments = {"mean": mean, "logvar": logvar}
    kept = {name: value.to("cpu", torch.bfloat16) for name, value in moments.items() if value is not None}
    return bytes(save({name: value.contiguous() for name, value in kept.items()}))


def text_member(encoder: TextEncoder, texts: tuple[str, ...]) -> bytes:
    """`KEY.text.safetensors`: embedding, mask, pooled; the leading axis is that of `texts`."""
    from safetensors.torch import save

    features = encoder.encode(texts)
    return bytes(save({"embedding": features.embedding, "mask": features.mask, "pooled": features.pooled}))


def latent_shape_of(member: bytes) -> tuple[int, int, int]:
    """(t, h, w) from a latent member's header; raises DataIntegrityError when it is none."""
    try:
        (length,) = struct.unpack("<Q", member[:_LENGTH_BYTES])
        _, t, h, w = json.loads(member[_LENGTH_BYTES : _LENGTH_BYTES + length])["mean"]["shape"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise DataIntegrityError(f"latent item does not parse: {error}", value=member[:16]) from None
    return t, h, w


@dataclass(frozen=True)
class ReconstructJob:
    """One encoded clip; the reconstruction is kept under the latent's key."""

    media: ClipMedia
    codec: CodecConfig
    latents_uri: str
    latent_key: str
    reconstructions_uri: str
    weights: Weights = ()
    device: str = "cpu"


def reconstruct(job: ReconstructJob) -> Reconstruction:
    """Decode a stored latent and set it beside its source; raises ItemError when the media are unusable."""
    store = ItemStore(Storage(job.reconstructions_uri))
    packed = store.get_or_make(job.latent_key, lambda: _reconstruct(job))
    psnr, first = _PSNR.unpack_from(packed)
    return Reconstruction(packed[_PSNR.size :], psnr, first)


def _reconstruct(job: ReconstructJob) -> bytes:
    import torch
    from safetensors.torch import load

    stored = ItemStore(Storage(job.latents_uri)).get(job.latent_key)
    if stored is None:
        raise DataIntegrityError("encoded item is gone", value=job.latent_key, next_step="run the stage again")
    source, _ = read_frames(job.media)
    codec = codec_of(job.codec, job.weights, job.device)
    decoded = codec.decode(load(stored)["mean"].to(torch.float32).numpy())
    video = encode_mp4(np.concatenate([source, decoded], axis=2), job.media.fps or STILL_FPS)
    return _PSNR.pack(psnr_db(source, decoded), psnr_db(source[:1], decoded[:1])) + video


def psnr_db(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB, two decimals; 99 for equal ones."""
    difference = a.astype(np.int64) - b.astype(np.int64)
    squared = int((difference**2).sum())
    return 99.0 if squared == 0 else round(float(10 * np.log10(255**2 * difference.size / squared)), 2)
