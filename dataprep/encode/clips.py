"""Kept rows of a clip table, and what each becomes: its buckets, its rate, its item keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq

from dataprep.buckets import Bucket, image_bucket, sampling_fps, video_buckets
from dataprep.captioning.provenance import COLUMN as PROVENANCE
from dataprep.curation.record import DEINTERLACED
from dataprep.encode_config import BucketConfig
from dataprep.quarantine import ItemError, Reason
from m4v.codec.shape import TEMPORAL
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError

Crop = tuple[int, int, int, int]

_COLUMNS = (
    "clip_id", "source", "source_id", "path", "source_digest", "size_bytes", "media", "start_us", "end_us",
    "first_frame", "frames", "fps", "width", "height", "crop", "captions", "caption_digest", "phash", "kept", "licence",
)  # fmt: skip
_SCORE, _TRANSFORMS = "score_", "transforms"


@dataclass(frozen=True)
class KeptClip:
    """One clip to encode. `width`, `height` are displayed pixels before `crop` (x0, y0, x1, y1)."""

    clip_id: str
    source: str
    source_id: str
    path: str
    source_digest: str
    size_bytes: int
    media: str
    start_us: int
    end_us: int
    first_frame: int
    frames: int
    fps: float
    width: int
    height: int
    crop: Crop | None
    captions: tuple[str, ...]
    caption_digest: str
    phash: str
    licence: str
    scores: tuple[tuple[str, float], ...]
    deinterlace: bool = False
    caption_provenance: tuple[dict[str, object], ...] | None = None  # one a caption, where the table has it

    @property
    def picture(self) -> tuple[int, int]:
        """(height, width) of what is encoded."""
        if self.crop is None:
            return self.height, self.width
        x0, y0, x1, y1 = self.crop
        return y1 - y0, x1 - x0

    def buckets(self, config: BucketConfig, time_stride: int = TEMPORAL) -> list[Bucket]:
        """Buckets to try, the longest first, of a codec's `time_stride`; raises ItemError when the clip fills none."""
        if self.media == "image":
            return [image_bucket(config, *self.picture, time_stride)]
        found = video_buckets(config, self.frames, self.fps, *self.picture, time_stride)
        if not found:
            rate = sampling_fps(config, self.fps)
            raise ItemError(
                Reason.TOO_SHORT,
                f"{self.frames} frames at {self.fps:g} fps, sampled at {rate:g}, do not fill {config.frames[0]} frames",
            )
        return found

    def sampling_fps(self, config: BucketConfig) -> float:
        return 0.0 if self.media == "image" else sampling_fps(config, self.fps)

    def latent_key(self, buckets: list[Bucket], fps: float) -> str:
        """Item key of the latent: everything its bytes depend on but the codec."""
        span = [self.source_digest, self.media, self.first_frame, self.frames, fps, self.crop and list(self.crop)]
        if self.deinterlace:
            span.append("field")
        return digest_json([span, [bucket.name for bucket in buckets]])

    def text_key(self) -> str:
        """Item key of the text features."""
        return digest_json(list(self.captions))


def kept_clips(path: Path) -> Iterator[KeptClip]:
    """Kept rows of `clips.parquet`, in its order; raises DataIntegrityError when a column is missing."""
    table = pq.ParquetFile(path, pre_buffer=False)  # keeps no chunk that was read
    names = table.schema_arrow.names
    if missing := sorted(set(_COLUMNS) - set(names)):
        raise DataIntegrityError("clip table has no such column", value=missing[0], where=path.name)
    scores = [n for n in names if n.startswith(_SCORE)]
    records = [n for n in (_TRANSFORMS, PROVENANCE) if n in names]  # tables of earlier versions have none
    for batch in table.iter_batches(columns=[*_COLUMNS, *scores, *records]):
        for row in batch.to_pylist():
            if row["kept"]:
                yield _clip(row, scores)


def _clip(row: dict[str, object], scores: list[str]) -> KeptClip:
    values = {n: row[n] for n in _COLUMNS if n not in ("kept", "crop", "captions")}
    found = [(n.removeprefix(_SCORE), row[n]) for n in sorted(scores)]
    crop = cast("list[int] | None", row["crop"])
    provenance = cast("list[dict[str, object]] | None", row.get(PROVENANCE))
    return KeptClip(
        **values,  # type: ignore[arg-type]
        crop=None if crop is None else (crop[0], crop[1], crop[2], crop[3]),
        captions=tuple(row["captions"] or ()),  # type: ignore[arg-type]
        scores=tuple((name, float(value)) for name, value in found if isinstance(value, int | float)),
        deinterlace=DEINTERLACED in (row.get(_TRANSFORMS) or ()),  # type: ignore[operator]
        caption_provenance=None if provenance is None else tuple(provenance),
    )
