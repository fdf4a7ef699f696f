"""Configuration of the encode stage: codec, text encoder, buckets and shards. Torch-free."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from m4v.codec.config import WAN_PIXEL_MULTIPLE, CodecConfig, DctCodecConfig
from m4v.codec.shape import nearest_frames
from m4v.core.config import FrozenModel
from m4v.text.config import MiniLmConfig, TextEncoderConfig

GIBIBYTE = 1 << 30

Size = tuple[int, int]


class BucketConfig(FrozenModel):
    """Sizes that clips are brought to.

    `frames`: lengths of videos, 8k+1 for the pyramid VAE and the transform codec, 4k+1 for Wan's VAE; a clip is
    encoded once, at the longest that it fills, and stages of fewer frames read the prefix. `sizes`, `image_sizes`:
    (height, width) in pixels; images use `sizes` unless they have their own. `fps`: sampling rate; a slower video
    keeps its own rate, no frame is invented.
    """

    frames: tuple[int, ...] = (9, 17, 33, 57, 121, 241)
    sizes: tuple[Size, ...] = ((128, 192), (192, 128), (128, 128))
    image_sizes: tuple[Size, ...] | None = None
    fps: float = Field(24, gt=0, le=240)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.frames or list(self.frames) != sorted(set(self.frames)):
            raise ValueError(f"frames {list(self.frames)} must rise, with no length twice")
        if self.frames[0] <= 1:
            raise ValueError(f"frames {self.frames[0]} is no video; images have their one frame anyway")
        for name, sizes in (("sizes", self.sizes), ("image_sizes", self.image_sizes)):
            if sizes is not None:
                _check_sizes(name, sizes)
        return self

    @property
    def all_sizes(self) -> tuple[Size, ...]:
        """Of videos, then of images where they have their own."""
        return (*self.sizes, *(self.image_sizes or ()))

    def check_codec(self, codec: CodecConfig) -> None:
        """Raises ValueError, with the nearest that would do, for lengths and sizes that `codec` cannot take."""
        stride, multiple = codec.time_stride, codec.pixel_multiple
        for frames in self.frames:
            if frames % stride != 1:
                near = " or ".join(map(str, nearest_frames(frames, stride)))
                raise ValueError(
                    f"buckets.frames: codec {codec.kind} takes {stride}k+1 frames, not {frames}: use {near}"
                )
        for size in self.all_sizes:
            if any(side % multiple for side in size):
                near = " x ".join(str(max(multiple, round(side / multiple) * multiple)) for side in size)
                raise ValueError(
                    f"buckets.sizes: codec {codec.kind} takes multiples of {multiple}, not {list(size)}: use {near}"
                )


def _check_sizes(name: str, sizes: tuple[Size, ...]) -> None:
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError(f"{name} must name at least one size, and each once")
    for size in sizes:
        if any(side <= 0 or side % WAN_PIXEL_MULTIPLE for side in size):
            raise ValueError(f"{name}: sides of {list(size)} must be multiples of {WAN_PIXEL_MULTIPLE}")


class ShardConfig(FrozenModel):
    """A shard ends at `samples` or before `size_bytes` would be passed, whichever comes first."""

    samples: int = Field(1000, ge=1)
    size_bytes: int = Field(GIBIBYTE, ge=1)


class EncodeConfig(FrozenModel):
    """Config of the `encode` stage.

    `reconstructions`: clips, spread over the sources, that are decoded again and shown beside their source.
    `min_psnr_db`: mean PSNR of these below which the stage fails: the codec's weights are not what they should be.
    `item_timeout_s`: wall clock for one clip. `max_quarantine_rate`: share of the kept clips past which the stage
    fails.
    """

    codec: CodecConfig = DctCodecConfig()
    text_encoder: TextEncoderConfig = MiniLmConfig()
    buckets: BucketConfig = BucketConfig()
    shards: ShardConfig = ShardConfig()
    reconstructions: int = Field(6, ge=0)
    min_psnr_db: float | None = Field(None, gt=0)
    item_timeout_s: float = Field(900, gt=0)
    max_quarantine_rate: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.buckets.check_codec(self.codec)
        if self.min_psnr_db is not None and not self.reconstructions:
            raise ValueError("min_psnr_db is measured on reconstructions, which are 0")
        return self


def weights_of(config: EncodeConfig) -> dict[str, str]:
    """Asset name -> sha256 of every packaged model that this config uses; imported ones are inputs."""
    encoder = config.text_encoder
    return encoder.weights() if isinstance(encoder, MiniLmConfig) else {}
