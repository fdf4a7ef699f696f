"""Frames that workers decode and the process at the device takes, through memory that both map."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataprep.encode.jobs import EncodeJob, Frames, keep_times, latent_shape_of, read_frames
from dataprep.quarantine import ItemError, Reason
from m4v.core.items import ItemStore
from m4v.core.storage import Storage


@dataclass(frozen=True)
class DecodeJob:
    """A clip, and the file of memory that its frames go to."""

    encode: EncodeJob
    memory: str


@dataclass(frozen=True)
class Decoded:
    """What a worker says: the shape (T, H, W, 3) of the uint8 frames that it left in memory, or, where the latent is
    there already, None and the latent's shape (t, h, w)."""

    frames: tuple[int, ...] | None
    latent: tuple[int, int, int] | None


class FrameMemory:
    """Memory that workers write frames into and this process reads them from, one place for each clip of a batch.

    A pipe would copy a clip of 768p and 121 frames, 357 MB, three times in the one thread that feeds the device.
    The memory has no name in any file system: it goes with the processes, however they end.
    """

    def __init__(self, places: int, size: int) -> None:
        self._files = [os.memfd_create(f"frames-{i}") for i in range(places)]
        for file in self._files:
            os.ftruncate(file, size)
        self._maps = [mmap.mmap(file, size) for file in self._files]

    def path(self, place: int) -> str:
        """As any process of this user may open it."""
        return f"/proc/{os.getpid()}/fd/{self._files[place]}"

    def frames(self, place: int, shape: tuple[int, ...]) -> Frames:
        """What lies there, not copied: to be let go before a worker is given the place again."""
        return np.frombuffer(self._maps[place], np.uint8, math.prod(shape)).reshape(shape)

    def close(self) -> None:
        for mapped, file in zip(self._maps, self._files, strict=True):
            mapped.close()
            os.close(file)


def decode_clip(job: DecodeJob) -> Decoded:
    """In a worker: the frames of a clip whose latent is not there; raises ItemError when its media are unusable."""
    if not job.encode.captions:
        raise ItemError(Reason.MISSING_CAPTION, "kept, but without a caption")
    latent = ItemStore(Storage(job.encode.latents_uri)).get(job.encode.latent_key)
    if latent is not None:
        shape = latent_shape_of(latent)
        keep_times(job.encode, shape)
        return Decoded(None, shape)
    frames, bucket = read_frames(job.encode.media)
    keep_times(job.encode, bucket.latent)
    with Path(job.memory).open("r+b") as memory:
        memory.write(np.ascontiguousarray(frames).data)
    return Decoded(frames.shape, None)
