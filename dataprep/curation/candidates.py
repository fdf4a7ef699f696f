"""Candidates of a decision, from the stage's clips or from the tables of a published artifact.

`hashes.parquet` keeps what the clip table leaves out and a new decision needs: for each row of that table, in its
order, the place of its file among the inputs, whether it is drawn, and its dense perceptual hashes.
`embeddings.parquet`, where embeddings were measured, has those of the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curation.filters import RULES, Candidates
from dataprep.curation.stored import batches, check_same_clips, column, read_fingerprints, sides, texts
from dataprep.curation.table import SCORES, Clip
from dataprep.dedup import Fingerprints, Signature
from dataprep.quarantine import Reason

HASHES, EMBEDDINGS = "hashes.parquet", "embeddings.parquet"
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("input_order", pa.int64()),
        ("drawn", pa.bool_()),
        ("dense", pa.binary()),  # little-endian 64-bit words
    ]
)
EMBEDDING_SCHEMA = pa.schema([("clip_id", pa.string()), ("embedding", pa.binary())])  # int8 components, or null
_ROWS_PER_GROUP = 8192
_MEASURES = frozenset(rule.value for rule in RULES)


def candidates_of(clips: Sequence[Clip]) -> Candidates:
    """The stage's clips as columns."""
    video = np.array([clip.is_video for clip in clips], dtype=np.bool_)
    frames = np.array([clip.frames for clip in clips], dtype=np.float64)
    values = {name: _floats([clip.scores.get(name) for clip in clips]) for name in _MEASURES}
    values["frames"] = np.where(video, frames, np.nan)
    values["side"] = np.array([min(clip.box.width, clip.box.height) for clip in clips], dtype=np.float64)

    def fingerprints(places: NDArray[np.int64]) -> Fingerprints:
        return Fingerprints.of(_signature(clips[place]) for place in places.tolist())

    return Candidates(
        [clip.clip_id for clip in clips], values, np.array([clip.drawn for clip in clips], dtype=np.bool_),
        np.array([bool(clip.captions) or clip.awaits_caption for clip in clips], dtype=np.bool_), fingerprints,
    )  # fmt: skip


def _signature(clip: Clip) -> Signature:
    side = min(clip.box.width, clip.box.height)
    return Signature(
        clip_id=clip.clip_id, content=clip.content, preference=(-side, -clip.frames, clip.order, clip.first_frame),
        sampled=clip.sampled, dense=clip.dense, media=clip.file.media, file=clip.file.sha256,
        perceptual=not clip.drawn, embedding=clip.embedding,
    )  # fmt: skip


def write_hashes(path: Path, clips: Sequence[Clip]) -> None:
    """`clips` in the order of the clip table; same clips, same bytes."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, max(1, len(clips)), _ROWS_PER_GROUP):
            rows = [
                {"clip_id": c.clip_id, "input_order": c.order, "drawn": c.drawn, "dense": _words(c.dense)}
                for c in clips[start : start + _ROWS_PER_GROUP]
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def write_embeddings(path: Path, clips: Sequence[Clip]) -> None:
    """Like `write_hashes`; nothing when no clip has an embedding."""
    if not any(clip.embedding for clip in clips):
        return
    with pq.ParquetWriter(path, EMBEDDING_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(clips), _ROWS_PER_GROUP):
            rows = [
                {"clip_id": c.clip_id, "embedding": c.embedding or None} for c in clips[start : start + _ROWS_PER_GROUP]
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA))


def read_candidates(clips_path: Path, hashes_path: Path, embeddings_path: Path | None = None) -> Candidates:
    """Candidates of a published clip table, in its order.

    Raises DataIntegrityError when a column is missing or the two tables are not of the same clips.
    """
    check_same_clips(clips_path, hashes_path)
    if embeddings_path is not None:
        check_same_clips(clips_path, embeddings_path)

    def fingerprints(places: NDArray[np.int64]) -> Fingerprints:
        return read_fingerprints(clips_path, hashes_path, places, embeddings_path)

    drawn = column(hashes_path, "drawn").to_numpy()
    return Candidates(
        texts(clips_path, "clip_id"), StoredValues(clips_path), drawn, _captioned(clips_path), fingerprints
    )


def read_values(clips_path: Path) -> dict[str, NDArray[np.float64]]:
    """What rules look at, by `Rule.value`, in the order of the clip table; NaN where nothing was measured.

    Read column by column: all of a large table at once would stand in memory twice.
    """
    return dict(StoredValues(clips_path))


class StoredValues(Mapping[str, NDArray[np.float64]]):
    """`Candidates.values` of a published clip table, each read when it is asked for: together they are large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = ("frames", "side", *(name for name in SCORES if name in _MEASURES))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self._names:
            raise KeyError(name)
        if name == "frames":
            video = pc.equal(column(self._path, "media"), "video").to_numpy()
            return np.where(video, column(self._path, "frames").to_numpy(), np.nan)
        if name == "side":
            return np.concatenate([np.zeros(0), *(sides(b["crop"]) for b in batches(self._path, ("crop",)))])
        return np.asarray(column(self._path, f"score_{name}").to_numpy(), dtype=np.float64)


def _captioned(path: Path) -> NDArray[np.bool_]:
    """By the rule that dropped a clip: one without captions may have waited for a model's when another rule did."""
    rule = column(path, "drop_rule")
    return np.asarray(pc.fill_null(pc.not_equal(rule, str(Reason.MISSING_CAPTION)), True).to_numpy(), dtype=np.bool_)


def _words(hashes: NDArray[np.uint64]) -> bytes:
    return hashes.astype("<u8").tobytes()


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
