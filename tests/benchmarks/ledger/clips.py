"""Fifty dataset versions with their clip tables, as rows of the clip index.

`Ledger.index_members` would read them from artifacts; five million rows come in faster in the order of their keys, with
the secondary indexes made afterwards. Rows and parts are cut as it cuts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m4v.core.rng import generator
from pipelines.ledger import Ledger
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.clip_index import _grouped
from pipelines.ledger.clip_load import insert_rows, pack_ranges, source_key, table_of, word_key
from pipelines.ledger.schema import Base
from tests.benchmarks.ledger.sizes import BUCKETS, SHARD, SOURCES, VERSIONS, Sizes, identity

SECOND_US = 1_000_000
CLIPS_A_FILE = 4
SLICES = 4096  # parts of a clip table
_AT_ONCE = 200_000
_BLOCK = 16_384
Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Clips:
    """Columns of all clips; number n came with version n // batch. One sample each."""

    sizes: Sizes
    clip: Words  # (n, 2) ids
    sample: Words
    file: Words  # (files, 4) digests of source files
    bucket: Numbers
    source: Numbers  # of a file

    @classmethod
    def generated(cls, sizes: Sizes) -> Clips:
        n, files = sizes.clips, -(-sizes.clips // CLIPS_A_FILE)
        random = generator(17, "clips of the ledger benchmark")
        clip, sample, file = (
            random.integers(0, 1 << 64, (rows, words), dtype=np.uint64) for rows, words in ((n, 2), (n, 2), (files, 4))
        )
        bucket, source = random.integers(0, len(BUCKETS), n), random.integers(0, len(SOURCES), files)
        return cls(sizes, clip, sample, file, bucket, source)

    def clip_id(self, number: int) -> str:
        return bytes(self.clip[number].astype(">u8").tobytes()).hex()

    @property
    def version(self) -> Numbers:
        return np.arange(self.sizes.clips) // self.sizes.batch

    @cached_property
    def group(self) -> Numbers:
        """(n,) `group_no`."""
        return 1 + self.source[np.arange(self.sizes.clips) // CLIPS_A_FILE] * len(BUCKETS) + self.bucket

    @cached_property
    def shard(self) -> Numbers:
        """(n,) `part_no` of the shard: a version's samples lie by bucket and id, as `encode` writes them."""
        order = np.lexsort((self.sample[:, 1], self.sample[:, 0], self.bucket, self.version))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return 1 + self.version * self.sizes.shards + place % self.sizes.batch // SHARD

    @cached_property
    def slice(self) -> Numbers:
        """(n,) `part_no` in the clip table of its version: one for each 4,096th of the ids."""
        first = 1 + VERSIONS * self.sizes.shards
        return first + self.version * SLICES + (self.clip[:, 0] >> np.uint64(52)).astype(np.int64)


def load_clips(ledger: Ledger, sizes: Sizes) -> Clips:
    """Every clip table and dataset version; returns the clips."""
    clips = Clips.generated(sizes)
    secondary = sorted(table_of(tables.Clip).indexes, key=lambda index: str(index.name))
    with ledger._db.connection() as connection:
        for index in secondary:
            index.drop(connection)
    _insert(ledger, tables.ClipSource, ((1 + n, name) for n, name in enumerate(SOURCES)))
    groups = [(s, *b) for s in range(len(SOURCES)) for b in BUCKETS]
    media = ("image" if t == 1 else "video" for _, t, _, _ in groups)
    named = enumerate(zip(groups, media, strict=True), start=1)
    _insert(ledger, tables.SampleGroup, ((n, 1 + s, m, t, h, w) for n, ((s, t, h, w), m) in named))
    _insert(ledger, tables.PartSample, _part_samples(clips))
    _insert(ledger, tables.Clip, _clip_rows(clips))
    _insert(ledger, tables.HashBlock, _hash_blocks(clips))
    _load_parts(ledger, clips)
    with ledger._db.connection() as connection:
        for index in secondary:
            index.create(connection)
    return clips


def _insert(ledger: Ledger, model: type[Base], rows: Iterator[tuple[Any, ...]]) -> None:
    waiting: list[tuple[Any, ...]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == _AT_ONCE:
            _write(ledger, model, waiting)
            waiting = []
    _write(ledger, model, waiting)


def _write(ledger: Ledger, model: type[Base], rows: Sequence[tuple[Any, ...]]) -> None:
    with ledger._db.write(chain=False) as session:
        insert_rows(session, model, rows)


def _part_samples(clips: Clips) -> Iterator[tuple[Any, ...]]:
    """By clip: its row in a shard, then the one in a clip table."""
    order = np.lexsort((clips.clip[:, 1], clips.clip[:, 0]))
    for some in np.array_split(order, max(1, len(order) // _AT_ONCE)):
        ids, samples = _cut(clips.clip[some]), _cut(clips.sample[some])
        columns = (clips.shard[some].tolist(), clips.slice[some].tolist(), clips.group[some].tolist())
        for clip, sample, shard, part, group in zip(ids, samples, *columns, strict=True):
            yield clip, shard, sample, group
            yield clip, part, b"", tables.KEPT


def _clip_rows(clips: Clips) -> Iterator[tuple[Any, ...]]:
    digests = _cut(clips.file, 32)
    names = [f"{n // 200:05d}/{n:08d}" for n in range(len(digests))]
    keys = [source_key(name) for name in names]
    sources = (1 + clips.source).tolist()
    order = np.lexsort((clips.clip[:, 1], clips.clip[:, 0]))
    for some in np.array_split(order, max(1, len(order) // _AT_ONCE)):
        for number, clip in zip(some.tolist(), _cut(clips.clip[some]), strict=True):
            file, place = divmod(number, CLIPS_A_FILE)
            start = place * 5 * SECOND_US
            yield (
                clip, word_key(digests[file]), keys[file], start, start + 4 * SECOND_US, sources[file],
                1 + number // _BLOCK, digests[file], names[file],
            )  # fmt: skip


def _hash_blocks(clips: Clips) -> Iterator[tuple[Any, ...]]:
    """Two words a clip."""
    for number, start in enumerate(range(0, clips.sizes.clips, _BLOCK), start=1):
        ids = clips.clip[start : start + _BLOCK].astype(">u8").tobytes()
        yield number, ids, bytes([2]) * (len(ids) // 16), clips.sample[start : start + _BLOCK].astype(">u8").tobytes()


def _load_parts(ledger: Ledger, clips: Clips) -> None:
    sizes = clips.sizes
    for parts in (clips.shard, clips.slice):
        counted = zip(*(column.tolist() for column in np.unique(parts, return_counts=True)), strict=True)
        complete = ((n, hashlib.sha256(b"part %d" % n).digest(), members, True) for n, members in counted)
        _insert(ledger, tables.ClipPart, complete)
    totals: dict[int, int] = {}
    for version in range(VERSIONS):
        mine = np.arange(version * sizes.batch, (version + 1) * sizes.batch)
        grouped = _grouped(clips.shard[mine], clips.group[mine], clips.sample[mine])
        _insert(ledger, tables.PartGroup, (row[:5] for row in grouped))
        _insert(ledger, tables.PartIds, ((*row[:2], row[5]) for row in grouped))
        for _, group, samples, *_ in grouped:
            totals[group] = totals.get(group, 0) + samples
        table, dataset = 2 * version + 1, 2 * version + 2
        rows = (version + 1) * sizes.batch
        slices, shards = np.unique(clips.slice[mine]).tolist(), range(1, 1 + (version + 1) * sizes.shards)
        _insert(ledger, tables.ClipIndex, iter([
            (table, identity("clips", version), "clips", sizes.batch, sizes.batch, True, pack_ranges(slices)),
            (dataset, identity("dataset", version), "dataset", rows, rows, True, pack_ranges(shards)),
        ]))  # fmt: skip
        _insert(ledger, tables.ArtifactGroup, ((dataset, group, n) for group, n in sorted(totals.items())))
        _insert(ledger, tables.ArtifactPart, ((table, n) for n in slices))
        _insert(ledger, tables.ArtifactPart, ((dataset, n) for n in shards))


def _cut(words: Words, size: int = 16) -> list[bytes]:
    data = words.astype(">u8").tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]
