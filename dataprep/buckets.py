"""Which size and length a clip is encoded at: pure arithmetic, the same wherever it runs.

A clip is encoded once, at the longest length it fills. The codec is causal, so a stage of fewer frames reads
the prefix of the latent; images and first frames are t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dataprep.encode_config import BucketConfig, Size
from dataprep.media.sampling import exact_rate, samples_in
from m4v.codec.shape import TEMPORAL, latent_shape
from m4v.core.shard_index import PATCH_AREA

_SAME_ASPECT = 1e-6  # of the logarithm of width / height


class Bucket(NamedTuple):
    """Size in pixels; `name` is part of a sample's id. `time_stride` is the codec's: frames that share a latent."""

    frames: int
    height: int
    width: int
    time_stride: int = TEMPORAL

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def latent(self) -> tuple[int, int, int]:
        """(t, h, w) of the latent."""
        return latent_shape(*self)

    @property
    def tokens(self) -> int:
        """2x2 latent patches."""
        t, h, w = self.latent
        return t * h * w // PATCH_AREA


def sampling_fps(config: BucketConfig, source_fps: float) -> float:
    """The rate a video is sampled at: the configured one, or its own when that is lower."""
    return config.fps if exact_rate(config.fps) <= exact_rate(source_fps) else source_fps


def choose_size(sizes: Sequence[Size], height: int, width: int) -> Size:
    """The (height, width) of nearest aspect ratio; of several, the largest that needs no enlarging, or the
    smallest when all do."""
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height}x{width} has no aspect ratio")

    def distance(size: Size) -> float:
        return abs(math.log(size[1] / size[0]) - math.log(width / height))

    nearest = min(map(distance, sizes))
    alike = sorted((s for s in sizes if distance(s) - nearest <= _SAME_ASPECT), key=lambda s: (s[0] * s[1], s))
    held = [s for s in alike if s[0] <= height and s[1] <= width]
    return held[-1] if held else alike[0]


def video_buckets(
    config: BucketConfig, frames: int, fps: float, height: int, width: int, time_stride: int = TEMPORAL
) -> list[Bucket]:
    """Buckets a span of `frames` source frames at `fps` fills, the longest first; empty when it is too short.

    More than one, because a file of uneven frame rate may turn out shorter than its average says.
    """
    available = samples_in(frames, fps, sampling_fps(config, fps))
    size = choose_size(config.sizes, height, width)
    return [Bucket(length, *size, time_stride) for length in reversed(config.frames) if length <= available]


def image_bucket(config: BucketConfig, height: int, width: int, time_stride: int = TEMPORAL) -> Bucket:
    return Bucket(1, *choose_size(config.image_sizes or config.sizes, height, width), time_stride)
