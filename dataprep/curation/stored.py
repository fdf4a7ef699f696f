"""Columns of a published clip table and its hashes, read in batches: ten million rows in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat, zip_longest
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curation.filters import RULES
from dataprep.curation.table import SCORES
from dataprep.dedup.fingerprints import Batch, Fingerprints, FingerprintWriter, Hashes, embedding_rows
from dataprep.dedup.spill import Texts
from m4v.core.errors import DataIntegrityError

_BATCH = 65_536
CLIP_COLUMNS = ("clip_id", "source_digest", "media", "first_frame", "frames", "crop", "phash", "content_digest")
HASH_COLUMNS = ("clip_id", "input_order", "drawn", "dense")
_LATER = frozenset(("score_jitter", "score_blockiness"))  # which the first clip tables do not have
_MEASURES = frozenset(rule.value for rule in RULES)


def texts(path: Path, name: str) -> Texts:
    """A text column for look-ups by place; raises DataIntegrityError when it is missing."""
    found = Texts()
    for batch in batches(path, (name,)):
        found.add(batch[name].to_pylist())
    return found


def column(path: Path, name: str) -> pa.ChunkedArray:
    """Raises DataIntegrityError when the table has no such column."""
    _check_columns(path, (name,))
    return pq.read_table(path, columns=[name])[name]


def batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All rows in batches of one size; raises DataIntegrityError when a column is missing."""
    _check_columns(path, names)
    yield from pq.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=_BATCH, columns=list(names))


def sides(crops: pa.Array) -> NDArray[np.int64]:
    """Shorter side in pixels of each crop (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (pc.list_element(crops, k).to_numpy(zero_copy_only=False) for k in range(4))
    return np.asarray(np.minimum(x1 - x0, y1 - y0), dtype=np.int64)


class Columns(Protocol):
    """A clip table, read by columns."""

    def column(self, name: str) -> pa.ChunkedArray: ...

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]: ...


class StoredTable:
    """A published one; raises DataIntegrityError when a column is missing.

    A score that came after the table was made is null for all its clips: not measured, so that no rule drops by it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def column(self, name: str) -> pa.ChunkedArray:
        if name in _LATER:
            footer = pq.read_metadata(self._path)
            if name not in footer.schema.names:
                return pa.chunked_array([pa.nulls(footer.num_rows, pa.float64())])
        return column(self._path, name)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return batches(self._path, names)


class StoredValues(Mapping[str, NDArray[np.float64]]):
    """`Candidates.values` of a clip table, each read when it is asked for: together they are large."""

    def __init__(self, table: Columns) -> None:
        self._table = table
        self._names = ("frames", "side", *(name for name in SCORES if name in _MEASURES))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self._names:
            raise KeyError(name)
        if name == "frames":
            video = pc.equal(self._table.column("media"), "video").to_numpy()
            return np.where(video, self._table.column("frames").to_numpy(), np.nan)
        if name == "side":
            return np.concatenate([np.zeros(0), *(sides(b["crop"]) for b in self._table.batches(("crop",)))])
        return np.asarray(self._table.column(f"score_{name}").to_numpy(), dtype=np.float64)


def check_same_clips(clips_path: Path, hashes_path: Path) -> None:
    """Raises DataIntegrityError unless both tables are of the same clips in the same order."""
    both = zip_longest(*(batches(path, ("clip_id",)) for path in (clips_path, hashes_path)))
    if not all(one is not None and other is not None and one.equals(other) for one, other in both):
        raise DataIntegrityError(
            f"{hashes_path.name} is of other clips than {clips_path.name}", where=str(clips_path.parent)
        )


class Part(NamedTuple):
    """Some rows of a clip table with what belongs to them: `clips` have the columns of the table, `hashes` those that
    it leaves out; `embeddings` None where none were measured."""

    clips: pa.RecordBatch
    hashes: pa.RecordBatch
    embeddings: pa.Array | None = None


def read_fingerprints(
    clips_path: Path, hashes_path: Path, places: NDArray[np.int64], embeddings_path: Path | None = None
) -> Fingerprints:
    """What dedup knows of the clips at rising `places` of the tables."""
    embedded = repeat(None) if embeddings_path is None else batches(embeddings_path, ("embedding",))
    both = zip(batches(clips_path, CLIP_COLUMNS), batches(hashes_path, HASH_COLUMNS), strict=True)
    parts = (
        Part(clips, hashes, None if embeddings is None else embeddings["embedding"])
        for (clips, hashes), embeddings in zip(both, embedded, strict=False)
    )
    return fingerprints_of(parts, places)


def fingerprints_of(parts: Iterable[Part], places: NDArray[np.int64]) -> Fingerprints:
    """What dedup knows of the clips at rising `places` of all parts together."""
    writer = FingerprintWriter()
    start = 0
    for clips, hashes, embeddings in parts:
        first, last = np.searchsorted(places, [start, start + len(clips)])
        wanted = pa.array(places[first:last] - start)
        start += len(clips)
        if len(wanted):
            values = [] if embeddings is None else embeddings.take(wanted).to_pylist()
            writer.add(_batch(clips.take(wanted), hashes.take(wanted), values))
    pa.default_memory_pool().release_unused()  # what decoding held stays no longer beside what is compared
    return writer.close()


def _batch(clips: pa.RecordBatch, hashes: pa.RecordBatch, embeddings: Sequence[bytes | None]) -> Batch:
    sampled, sampled_counts = hashes_of_texts(clips["phash"].to_pylist())
    dense, dense_counts = _words(hashes["dense"])
    preference = (-sides(clips["crop"]), -clips["frames"].to_numpy(), hashes["input_order"].to_numpy())
    return Batch(
        clip_ids=clips["clip_id"].to_pylist(),
        contents=clips["content_digest"].to_pylist(),
        preference=np.stack([*preference, clips["first_frame"].to_numpy()], axis=1).astype(np.float64),
        files=clips["source_digest"].to_pylist(),
        media=clips["media"].to_pylist(),
        perceptual=~np.asarray(hashes["drawn"]),
        sampled=sampled,
        sampled_counts=sampled_counts,
        dense=dense,
        dense_counts=dense_counts,
        embeddings=embedding_rows(embeddings, len(clips)),
    )


def hashes_of_texts(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of texts like `signals.phash.as_text` makes, laid end to end, and their number in each text."""
    counts = np.array([(len(text) + 1) // 17 for text in texts], dtype=np.int64)
    words = np.frombuffer(bytes.fromhex("".join(texts).replace("-", "")), dtype=">u8")
    return words.astype(np.uint64), counts


def _words(values: pa.BinaryArray) -> tuple[Hashes, NDArray[np.int64]]:
    """Little-endian words of binary values, laid end to end, and their number in each value."""
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    if data is None or ends[0] == ends[-1]:
        return np.zeros(0, np.uint64), np.zeros(len(values), np.int64)
    words = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]].copy().view("<u8")
    return words.astype(np.uint64), np.diff(ends) // 8


def _check_columns(path: Path, names: Sequence[str]) -> None:
    known = pq.read_schema(path).names
    if missing := sorted(set(names) - set(known)):
        raise DataIntegrityError("table has no such column", value=missing[0], where=str(path))
