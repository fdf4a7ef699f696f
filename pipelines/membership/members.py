"""The rows of an artifact's own index or clip table, as the clip index takes them in: part by part, in batches.

A dataset's part is a shard, named by the shard's digest. A clip table's part are the rows whose clip ids begin with
the same 12 bits, named by a digest of them: tables that differ in a few clips share nearly every part.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import INDEX
from m4v.core.storage import Storage

CLIPS, SHARDS = "clips.parquet", "shards/"
BATCH_ROWS = 16_384  # of one transaction
_READ_ROWS = 65_536  # of a file, read together
_SORTED_ROWS = 131_072  # of a clip table, whose order is another than the index's
_SLICE_BITS = 12
_FACTS = ("clip_id", "source", "source_id", "source_digest", "start_us", "end_us", "phash")
_GROUP = ("source", "media", "bucket_t", "bucket_h", "bucket_w")
PART, SAMPLE, KEPT, GROUP = "part", "sample_id", "kept", "group"
SEPARATOR = "\x1f"  # between the parts of a group's name; no id may hold it

Wanted = NDArray[np.bool_]


class Batch(NamedTuple):
    """Rows of wanted parts, all from before row `end` of the artifact's table. Who has this batch and those before
    it need not read the first `done` rows again."""

    end: int
    done: int
    table: pa.Table


class Members(Protocol):
    """Rows come as tables with `part` (place in `parts`), the facts of the clip, and for a dataset `sample_id` and
    `group` (source, media, t, h, w), for a clip table `kept`."""

    @property
    def rows(self) -> int: ...

    @property
    def parts(self) -> Sequence[bytes]:
        """Digests."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each part."""
        ...

    def batches(self, wanted: Wanted) -> Iterator[Batch]:
        """Rows of the wanted parts, at most `BATCH_ROWS` together; always in the same order."""
        ...

    def samples(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Part, sample id and group of the wanted parts' rows; nothing for a clip table."""
        ...


@contextmanager
def open_members(artifact_id: str, kind: ArtifactKind, storage: Storage) -> Iterator[Members]:
    """The rows of a `clips` or `dataset` artifact; none when it holds no table of them.

    Raises DataIntegrityError when the table cannot be read or does not agree with the manifest.
    """
    with tempfile.TemporaryDirectory(prefix="members-") as cache:
        artifact = Artifact(storage.uri, artifact_id, kind, Path(cache))
        name = INDEX if kind == ArtifactKind.DATASET else CLIPS
        if name not in artifact.names():
            yield NoMembers()
            return
        try:
            yield DatasetMembers(artifact) if kind == ArtifactKind.DATASET else ClipMembers(artifact)
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataIntegrityError(f"{name} cannot be read: {error}", where=storage.uri) from None


class NoMembers:
    """An artifact without a table."""

    rows = 0
    parts: Sequence[bytes] = ()
    sizes: Sequence[int] = ()

    def batches(self, wanted: Wanted) -> Iterator[Batch]:
        return iter(())

    def samples(self, wanted: Wanted) -> Iterator[pa.Table]:
        return iter(())


class DatasetMembers:
    """`index.parquet` of a dataset version."""

    def __init__(self, artifact: Artifact) -> None:
        self._file, self._where = _open(artifact.path(INDEX)), f"{artifact.kind} {artifact.id[:12]}"
        self.rows = self._file.metadata.num_rows
        self._names = pa.array([n.removeprefix(SHARDS) for n in artifact.names(SHARDS)], pa.string())
        self.parts = [bytes.fromhex(artifact.manifest.entry(n).sha256) for n in artifact.names(SHARDS)]
        sizes = np.zeros(len(self.parts), dtype=np.int64)
        for batch in self._file.iter_batches(batch_size=_READ_ROWS, columns=["shard"]):
            sizes += np.bincount(self._places(batch), minlength=len(sizes))
        self.sizes = sizes.tolist()

    def batches(self, wanted: Wanted) -> Iterator[Batch]:
        return _coalesced(self._tables(wanted, (*_FACTS, SAMPLE)))

    def samples(self, wanted: Wanted) -> Iterator[pa.Table]:
        for _, table in self._tables(wanted, (SAMPLE,)):
            yield table

    def _tables(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        passed = 0
        read = list(dict.fromkeys([*columns, *_GROUP, "shard"]))
        for batch in self._file.iter_batches(batch_size=_READ_ROWS, columns=read):
            passed += batch.num_rows
            places = self._places(batch)
            taken = np.flatnonzero(wanted[places])
            rows = pa.Table.from_batches([batch]).take(pa.array(taken))
            texts = [pc.cast(rows[name], pa.string()) for name in _GROUP]
            group = pc.binary_join_element_wise(*texts, SEPARATOR)
            table = rows.select(list(columns)).append_column(PART, pa.array(places[taken], pa.int32()))
            yield passed, table.append_column(GROUP, group)

    def _places(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        found = pc.index_in(batch["shard"], value_set=self._names)
        if found.null_count:
            shard = batch["shard"][pc.index(pc.is_null(found), True).as_py()].as_py()
            raise DataIntegrityError("index names a shard that the manifest has not", value=shard, where=self._where)
        return np.asarray(found.to_numpy(), dtype=np.int64)


class ClipMembers:
    """`clips.parquet` of a clip table: every candidate, kept or dropped, for the artifact holds them all."""

    def __init__(self, artifact: Artifact) -> None:
        self._file = _open(artifact.path(CLIPS))
        self.rows = self._file.metadata.num_rows
        slices, self.parts, self.sizes = self._digested()
        self._part_of = np.full(1 << _SLICE_BITS, -1, dtype=np.int32)
        self._part_of[slices] = np.arange(len(slices))

    def _digested(self) -> tuple[NDArray[np.int64], list[bytes], list[int]]:
        """The slices that have rows, the digest of each and its number of rows; 25 bytes a row in memory."""
        read = []
        for batch in self._file.iter_batches(batch_size=_READ_ROWS, columns=["clip_id", KEPT, "source_digest"]):
            ids = id_words(batch["clip_id"])
            files = id_words(pc.utf8_slice_codeunits(batch["source_digest"], 0, 32))[:, 0]
            read.append(np.column_stack([ids, files, np.asarray(batch[KEPT].to_numpy(zero_copy_only=False))]))
        rows = np.concatenate(read) if read else np.zeros((0, 4), dtype=np.uint64)
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        slices, starts = np.unique(_slices(rows), return_index=True)
        ends = np.append(starts[1:], len(rows))
        digests = [
            hashlib.sha256(b"clips\n" + rows[start:end].astype(">u8").tobytes()).digest()
            for start, end in zip(starts, ends, strict=True)
        ]
        return slices, digests, (ends - starts).tolist()

    def batches(self, wanted: Wanted) -> Iterator[Batch]:
        end = 0
        for batch in self._file.iter_batches(batch_size=_SORTED_ROWS, columns=[*_FACTS, KEPT]):
            before, end = end, end + batch.num_rows
            words = id_words(batch["clip_id"])
            places = self._part_of[_slices(words)]
            taken = np.flatnonzero(wanted[places])
            taken = taken[np.lexsort((words[taken, 1], words[taken, 0]))]
            table = pa.Table.from_batches([batch]).append_column(PART, pa.array(places, pa.int32()))
            for start in range(0, len(taken), BATCH_ROWS):
                done = end if start + BATCH_ROWS >= len(taken) else before
                yield Batch(end, done, table.take(pa.array(taken[start : start + BATCH_ROWS])))

    def samples(self, wanted: Wanted) -> Iterator[pa.Table]:
        return iter(())


def _slices(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (words[:, 0] >> np.uint64(64 - _SLICE_BITS)).astype(np.int64)


def id_bytes(column: pa.Array | pa.ChunkedArray) -> bytes:
    """Ids of 32 hex digits as 16 bytes each, one after the other; raises DataIntegrityError for any other id."""
    texts = column.to_pylist()
    if any(text is None or len(text) != 32 for text in texts):
        wrong = next(text for text in texts if text is None or len(text) != 32)
        raise DataIntegrityError("id is not of 32 hex digits", value=wrong)
    try:
        return bytes.fromhex("".join(texts))
    except ValueError:
        raise DataIntegrityError("ids are not of hex digits", value=texts[0]) from None


def id_words(column: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """(n, 2) ids of 32 hex digits as two words each, whose order is that of the ids."""
    return np.frombuffer(id_bytes(column), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False)  # keeps no chunk that was read


def _coalesced(tables: Iterator[tuple[int, pa.Table]]) -> Iterator[Batch]:
    """The same rows in tables of `BATCH_ROWS`; few of them may be wanted of many that are read."""
    waiting: list[pa.Table] = []
    held = passed = before = 0
    for passed, table in tables:
        waiting.append(table)
        held += table.num_rows
        if held >= BATCH_ROWS:
            whole = pa.concat_tables(waiting)
            for start in range(0, held, BATCH_ROWS):
                done = passed if start + BATCH_ROWS >= held else before
                yield Batch(passed, done, whole.slice(start, BATCH_ROWS))
            waiting, held = [], 0
            before = passed
    if held:
        yield Batch(passed, passed, pa.concat_tables(waiting))
