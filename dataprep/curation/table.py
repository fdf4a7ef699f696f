"""The clip table: one row a candidate, kept or dropped, with every score that was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataprep.captioning.provenance import COLUMN, Provenance
from dataprep.captioning.provenance import rows as provenance_rows
from dataprep.curation.record import MediaRecord
from dataprep.media.geometry import Box
from dataprep.sources.listing import ListedFile
from m4v.core.canonical import digest_json
from m4v.core.ids import clip_id
from m4v.core.storage import write_atomic

CLIPS, FUNNEL, PREVIEWS = "clips.parquet", "funnel.json", "previews"
SCORES = (
    "black", "overexposed", "brightness", "letterbox", "frozen", "motion", "jitter", "sharpness", "blockiness",
    "flash", "interlaced", "gap", "text", "nsfw", "brisque",
)  # fmt: skip

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("path", pa.string()),
        ("source_digest", pa.string()),
        ("size_bytes", pa.int64()),  # of the source file
        ("media", pa.string()),  # video | image
        ("start_us", pa.int64()),  # half-open span; 0, 0 for an image
        ("end_us", pa.int64()),
        ("first_frame", pa.int64()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),  # 0 for an image
        ("width", pa.int32()),  # displayed pixels, before the crop
        ("height", pa.int32()),
        ("crop", pa.list_(pa.int32())),  # x0, y0, x1, y1: the picture inside black bars
        ("captions", pa.list_(pa.string())),
        ("caption_digest", pa.string()),
        *[(f"score_{name}", pa.float64()) for name in SCORES],
        ("phash", pa.string()),  # of frames spread over the clip
        ("content_digest", pa.string()),
        ("kept", pa.bool_()),
        ("drop_rule", pa.string()),
        ("duplicate_of", pa.string()),
        ("licence", pa.string()),
        ("transforms", pa.list_(pa.string())),  # what the pixels pass through between the file and a frame
        ("warnings", pa.list_(pa.string())),
        ("media_facts", pa.string()),  # JSON: measured facts beside the claims of the container and the collection
    ]
)


@dataclass
class Clip:
    """A candidate on its way through the rules. `sampled` and `dense` are perceptual hashes of its frames."""

    source: str
    file: ListedFile
    drawn: bool
    start_us: int
    end_us: int
    first_frame: int
    frames: int
    fps: float
    width: int
    height: int
    box: Box
    captions: tuple[str, ...]
    phash: str
    content: str
    sampled: NDArray[np.uint64]
    dense: NDArray[np.uint64]
    order: int  # place of its file among all inputs
    scores: dict[str, float | None] = field(default_factory=dict)
    record: MediaRecord = field(default_factory=MediaRecord)
    drop_rule: str | None = None
    duplicate_of: str | None = None
    embedding: bytes = b""  # int8 components; empty where it was not measured
    provenance: tuple[Provenance, ...] | None = None  # of each caption, where the recipe has a section for captions
    awaits_caption: bool = False  # a model will write one if the clip is kept

    @property
    def clip_id(self) -> str:
        return clip_id(self.source, self.file.source_id, self.start_us, self.end_us)

    @property
    def is_video(self) -> bool:
        return self.file.media == "video"

    def row(self) -> dict[str, object]:
        own = {} if self.provenance is None else {COLUMN: provenance_rows(self.provenance)}
        return {
            **own,
            "clip_id": self.clip_id, "source": self.source, "source_id": self.file.source_id, "path": self.file.path,
            "source_digest": self.file.sha256, "size_bytes": self.file.size_bytes, "media": self.file.media,
            "start_us": self.start_us, "end_us": self.end_us, "first_frame": self.first_frame, "frames": self.frames,
            "fps": self.fps, "width": self.width, "height": self.height, "crop": list(self.box),
            "captions": list(self.captions), "caption_digest": digest_json(list(self.captions)),
            **{f"score_{name}": self.scores.get(name) for name in SCORES},
            "phash": self.phash, "content_digest": self.content, "kept": self.drop_rule is None,
            "drop_rule": self.drop_rule, "duplicate_of": self.duplicate_of, "licence": self.file.licence,
            "transforms": list(self.record.transforms), "warnings": list(self.record.warnings),
            "media_facts": self.record.facts_json(),
        }  # fmt: skip


@dataclass
class Funnel:
    """What entered and left each step, in order."""

    steps: list[dict[str, object]] = field(default_factory=list)

    def add(self, step: str, unit: str, entered: int, dropped: dict[str, int], left: int | None = None) -> None:
        out = entered - sum(dropped.values()) if left is None else left
        self.steps.append(
            {"step": step, "unit": unit, "in": entered, "out": out, "dropped_by_reason": dict(sorted(dropped.items()))}
        )

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.steps, indent=1).encode())
