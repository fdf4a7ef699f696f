"""Turns batches of members into rows: samples of parts, and facts of clips that the index does not know yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.errors import DataIntegrityError
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.clip_load import among, chunks, insert_rows, next_number, source_key, word_key
from pipelines.membership.members import GROUP, KEPT, PART, SAMPLE, SEPARATOR, id_bytes

BLOCK = 2048  # clips of a block of hashes: one is read to tell a clip's, all to search


class RowWriter:
    """Writes batches of one artifact; remembers the numbers of sources and groups, so it ends with a failed one."""

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}
        self._groups: dict[str, int] = {}

    def add(self, session: Session, table: pa.Table, part_nos: NDArray[np.int64]) -> None:
        """Insert a batch of `Members`."""
        if not table.num_rows:
            return
        table = table.combine_chunks()
        clips = list(_cut(id_bytes(table["clip_id"]), 16))
        if SAMPLE in table.column_names:
            samples = list(_cut(id_bytes(table[SAMPLE]), 16))
            groups = self.group_numbers(session, pc.dictionary_encode(table[GROUP].combine_chunks())).tolist()
        else:
            samples = [b""] * len(clips)
            groups = [tables.KEPT if kept else tables.DROPPED for kept in table[KEPT].to_pylist()]
        parts = part_nos[np.asarray(table[PART].to_numpy())].tolist()
        rows = sorted(zip(clips, parts, samples, groups, strict=True))
        insert_rows(session, tables.PartSample, rows, ignore=True)
        self._add_clips(session, table, clips)

    def _add_clips(self, session: Session, table: pa.Table, clips: list[bytes]) -> None:
        digests = [_digest(text) for text in table["source_digest"].to_pylist()]
        place_of = {(clip, word_key(digest)): n for n, (clip, digest) in enumerate(zip(clips, digests, strict=True))}
        clip = tables.Clip
        known = select(clip.clip_id, clip.digest_key)
        for some in chunks(sorted({c for c, _ in place_of})):
            for row in session.execute(known.where(among(session, clip.clip_id, some))):
                place_of.pop((row.clip_id, row.digest_key), None)
        if not place_of:
            return
        new = sorted(place_of.items())
        facts = table.take(pa.array([n for _, n in new])).to_pydict()
        first = next_number(session, tables.HashBlock.block_no)
        numbers = {name: self.source_number(session, name) for name in dict.fromkeys(facts["source"])}
        rows = [
            (id_, key, source_key(source_id), start, end, numbers[source], first + n // BLOCK, digests[at], source_id)
            for n, (((id_, key), at), source, source_id, start, end) in enumerate(
                zip(new, facts["source"], facts["source_id"], facts["start_us"], facts["end_us"], strict=True)
            )
        ]
        insert_rows(session, clip, rows)
        ids = [id_ for (id_, _), _ in new]
        blocks = [
            _block(first + n // BLOCK, ids[n : n + BLOCK], facts["phash"][n : n + BLOCK])
            for n in range(0, len(ids), BLOCK)
        ]
        insert_rows(session, tables.HashBlock, blocks)

    def source_number(self, session: Session, name: str) -> int:
        """The number of a source, given now if it has none."""
        if name not in self._sources:
            row = tables.ClipSource
            number = session.scalar(select(row.source_no).where(row.name == name))
            if number is None:
                number = next_number(session, row.source_no)
                insert_rows(session, row, [(number, name)])
            self._sources[name] = number
        return self._sources[name]

    def group_numbers(self, session: Session, encoded: pa.DictionaryArray) -> NDArray[np.int64]:
        """(n,) numbers of the groups that rows name."""
        numbers = [self._group_number(session, name) for name in encoded.dictionary.to_pylist()]
        taken = np.array(numbers, dtype=np.int64)[np.asarray(encoded.indices.to_numpy(zero_copy_only=False))]
        return np.asarray(taken, dtype=np.int64)

    def _group_number(self, session: Session, name: str) -> int:
        if name not in self._groups:
            source, media, *sizes = name.split(SEPARATOR)
            values = (self.source_number(session, source), media, *map(int, sizes))
            row = tables.SampleGroup
            columns = (row.source_no, row.media, row.t, row.h, row.w)
            query = select(row.group_no).where(*(c == v for c, v in zip(columns, values, strict=True)))
            number = session.scalar(query)
            if number is None:
                number = next_number(session, row.group_no)
                insert_rows(session, row, [(number, *values)])
            self._groups[name] = number
        return self._groups[name]


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _digest(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        raise DataIntegrityError("digest of a source file is not of hex digits", value=text) from None


def _block(number: int, clips: list[bytes], hashes: list[str | None]) -> tuple[Any, ...]:
    """A `hash_block` row. A clip with more words than a byte counts keeps the first 255."""
    words = [[w for w in (text or "").split("-") if w][:255] for text in hashes]
    joined = "".join(w.zfill(16) for own in words for w in own)
    return number, b"".join(clips), bytes(map(len, words)), bytes.fromhex(joined)
