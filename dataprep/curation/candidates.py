"""Candidates of a decision, from the stage's clips or from the tables of a published artifact.

`hashes.parquet` keeps what the clip table leaves out and a new decision needs: for each row of that table, in its
order, the place of its file among the inputs, whether it is drawn, and its dense perceptual hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curation.filters import RULES, Candidates
from dataprep.curation.table import SCORES, Clip
from dataprep.dedup import Signature
from dataprep.signals.phash import from_text
from m4v.core.errors import DataIntegrityError

HASHES = "hashes.parquet"
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("input_order", pa.int64()),
        ("drawn", pa.bool_()),
        ("dense", pa.binary()),  # little-endian 64-bit words
    ]
)
_ROWS_PER_GROUP = 8192
_MEASURES = frozenset(rule.value for rule in RULES)
_VALUE_COLUMNS = ("media", "frames", "crop", *(f"score_{name}" for name in SCORES if name in _MEASURES))
_COLUMNS = ("clip_id", "source_digest", "first_frame", "phash", "content_digest", *_VALUE_COLUMNS)


def candidates_of(clips: Sequence[Clip]) -> Candidates:
    """The stage's clips as columns."""
    video = np.array([clip.is_video for clip in clips], dtype=np.bool_)
    frames = np.array([clip.frames for clip in clips], dtype=np.float64)
    values = {name: _floats([clip.scores.get(name) for clip in clips]) for name in _MEASURES}
    values["frames"] = np.where(video, frames, np.nan)
    values["side"] = np.array([min(clip.box.width, clip.box.height) for clip in clips], dtype=np.float64)

    def signature(place: int) -> Signature:
        clip = clips[place]
        side = min(clip.box.width, clip.box.height)
        return Signature(
            clip_id=clip.clip_id, content=clip.content,
            preference=(-side, -clip.frames, clip.order, clip.first_frame),
            sampled=clip.sampled, dense=clip.dense, media=clip.file.media, file=clip.file.sha256,
            perceptual=not clip.drawn,
        )  # fmt: skip

    return Candidates(
        [clip.clip_id for clip in clips], values, np.array([clip.drawn for clip in clips], dtype=np.bool_),
        np.array([bool(clip.captions) for clip in clips], dtype=np.bool_), signature,
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


def read_candidates(clips_path: Path, hashes_path: Path) -> Candidates:
    """Candidates of a published clip table, in its order.

    Raises DataIntegrityError when a column is missing or the two tables are not of the same clips.
    """
    table, hashes = _columns(clips_path, _COLUMNS), _columns(hashes_path, SCHEMA.names)
    if not table["clip_id"].equals(hashes["clip_id"]):
        raise DataIntegrityError(f"{HASHES} is of other clips than {clips_path.name}", where=str(clips_path.parent))
    sides, frames, firsts = _sides(table), table["frames"].to_numpy(), table["first_frame"].to_numpy()
    drawn, order = np.asarray(hashes["drawn"]), hashes["input_order"].to_numpy()

    def signature(place: int) -> Signature:
        dense = np.frombuffer(hashes["dense"][place].as_py(), dtype="<u8")
        return Signature(
            clip_id=table["clip_id"][place].as_py(), content=table["content_digest"][place].as_py(),
            preference=(-int(sides[place]), -int(frames[place]), int(order[place]), int(firsts[place])),
            sampled=from_text(table["phash"][place].as_py()), dense=dense.astype(np.uint64),
            media=table["media"][place].as_py(), file=table["source_digest"][place].as_py(),
            perceptual=not drawn[place],
        )  # fmt: skip

    return Candidates(table["clip_id"].to_pylist(), _values(table), drawn, _captioned(clips_path), signature)


def read_values(clips_path: Path) -> dict[str, NDArray[np.float64]]:
    """What rules look at, by `Rule.value`, in the order of the clip table; NaN where nothing was measured."""
    return _values(_columns(clips_path, _VALUE_COLUMNS))


def _values(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    video = np.asarray(pc.equal(table["media"], "video"))
    return {
        "frames": np.where(video, table["frames"].to_numpy(), np.nan),
        "side": _sides(table).astype(np.float64),
        **{name: table[f"score_{name}"].to_numpy().astype(np.float64) for name in SCORES if name in _MEASURES},
    }


def _captioned(path: Path) -> NDArray[np.bool_]:
    """Read in batches: the captions of a large table are most of its bytes."""
    found = [
        np.asarray(pc.greater(pc.list_value_length(batch["captions"]), 0))
        for batch in pq.ParquetFile(path).iter_batches(columns=["captions"])
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.bool_)


def _sides(table: pa.Table) -> NDArray[np.int64]:
    """Shorter side in pixels of each crop (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (pc.list_element(table["crop"], k).to_numpy() for k in range(4))
    return np.asarray(np.minimum(x1 - x0, y1 - y0), dtype=np.int64)


def _columns(path: Path, names: Sequence[str]) -> pa.Table:
    known = pq.read_schema(path).names
    if missing := sorted(set(names) - set(known)):
        raise DataIntegrityError("table has no such column", value=missing[0], where=str(path))
    return pq.read_table(path, columns=list(names)).combine_chunks()


def _words(hashes: NDArray[np.uint64]) -> bytes:
    return hashes.astype("<u8").tobytes()


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
