"""The clip index's write side: the parts of an artifact come in once, batch by batch, before its run is committed.

Every batch is a small transaction; a process that is killed leaves parts that nobody relies on, and the next one
goes on behind the last batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.clip_load import (
    among,
    analyse,
    chunks,
    index_writing,
    insert_rows,
    next_number,
    pack_ranges,
    source_key,
    url_key,
)
from pipelines.ledger.clip_rows import RowWriter
from pipelines.ledger.database import Database
from pipelines.membership.members import GROUP, PART, SAMPLE, Members, id_words, open_members

INDEXED_KINDS = (ArtifactKind.SOURCE, ArtifactKind.CLIPS, ArtifactKind.DATASET)
LISTING, SOURCE_FACTS = "listing.parquet", "source.json"
_ANALYSED = 10_000  # new rows after which a planner's statistics are out of date
_PASS_ROWS = 1_048_576  # samples sorted together


class _Begun(NamedTuple):
    """An artifact whose indexing is under way: its number, its parts' numbers, and which of them are to come."""

    artifact_no: int
    part_nos: NDArray[np.int64]
    missing: NDArray[np.bool_]
    done_rows: int


class ClipIndexOps:
    """The verbs of a Ledger that fill the clip index."""

    _db: Database

    def index_members(self, artifact_id: str, kind: str, storage: Storage) -> int:
        """Index the clips of a `clips` or `dataset` artifact that lies at `storage`, or the URLs of a `source`.

        Returns how many rows were new; 0 when it had been indexed, and for artifacts of other kinds. May be killed
        and called again, by several processes at once too. Raises DataIntegrityError for an artifact whose tables
        cannot be read.
        """
        if kind not in INDEXED_KINDS or self.is_indexed(artifact_id, kind):
            return 0
        if kind == ArtifactKind.SOURCE:
            return self._index_urls(artifact_id, storage)
        with open_members(artifact_id, ArtifactKind(kind), storage) as members:
            return self.load_parts(artifact_id, kind, members)

    def forget_members(self, artifact_id: str, kind: str) -> None:
        """Take an artifact's rows out of the index, to be indexed again: until then searches miss them, and those of
        other artifacts that share them. What is known of the clips themselves stays."""
        index, own, part = tables.ClipIndex, tables.ArtifactPart, tables.ClipPart
        with index_writing(self._db) as session:
            found = select(index.artifact_no).where(index.artifact_id == artifact_id, index.kind == str(kind))
            number = session.scalar(found)
            if number is None:
                return
            parts = select(own.part_no).where(own.artifact_no == number)
            for table in (tables.PartSample, tables.PartGroup, tables.PartIds):
                session.execute(delete(table).where(table.part_no.in_(parts)))
            session.execute(update(part).where(part.part_no.in_(parts)).values(complete=False))
            session.execute(delete(tables.ArtifactGroup).where(tables.ArtifactGroup.artifact_no == number))
            session.execute(update(index).where(index.artifact_no == number).values(complete=False, done_rows=0))

    def is_indexed(self, artifact_id: str, kind: str) -> bool:
        row = tables.ClipIndex
        query = select(row.complete).where(row.artifact_id == artifact_id, row.kind == str(kind))
        with self._db.read() as session:
            return bool(session.scalar(query))

    def load_parts(self, artifact_id: str, kind: str, members: Members) -> int:
        """`index_members` from rows that need not lie in a store."""
        begun = self._begin(artifact_id, kind, members)
        if begun is None:
            return 0
        writer, added = RowWriter(), 0
        if begun.missing.any():
            for batch in members.batches(begun.missing):
                if batch.end <= begun.done_rows:
                    continue
                with index_writing(self._db) as session:
                    writer.add(session, batch.table, begun.part_nos)
                    _advance(session, begun.artifact_no, batch.done)
                added += batch.table.num_rows
            self._add_groups(begun, members, writer)
        self._finish(begun)
        if added > _ANALYSED:
            analyse(self._db)
        return added

    def _begin(self, artifact_id: str, kind: str, members: Members) -> _Begun | None:
        """Give numbers to the artifact and its parts; None when it is in the index."""
        with index_writing(self._db) as session:
            row = _index_row(session, artifact_id, kind, members.rows)
            if row.complete:
                return None
            known: dict[bytes, tuple[int, bool]] = {}
            part = tables.ClipPart
            query = select(part.digest, part.part_no, part.complete)
            for digests in chunks(members.parts):
                rows = session.execute(query.where(among(session, part.digest, digests)))
                known |= {digest: (number, complete) for digest, number, complete in rows}
            number = next_number(session, part.part_no)
            new: list[tuple[Any, ...]] = []
            for digest, size in zip(members.parts, members.sizes, strict=True):
                if digest not in known:
                    known[digest] = number + len(new), False
                    new.append((number + len(new), digest, size, False))
            insert_rows(session, part, new)
            part_nos = np.array([known[d][0] for d in members.parts], dtype=np.int64)
            missing = np.array([not known[d][1] for d in members.parts], dtype=np.bool_)
            return _Begun(row.artifact_no, part_nos, missing, row.done_rows)

    def _add_groups(self, begun: _Begun, members: Members, writer: RowWriter) -> None:
        """Sorted sample ids by part and group, some parts at a time so that memory is bounded."""
        for chosen in _passes(begun.missing, members.sizes):
            found = [
                (np.asarray(t[PART].to_numpy()), id_words(t[SAMPLE]), pc.dictionary_encode(t[GROUP].combine_chunks()))
                for t in members.samples(chosen)
                if t.num_rows
            ]
            if not found:
                continue
            with index_writing(self._db) as session:
                groups = np.concatenate([writer.group_numbers(session, encoded) for _, _, encoded in found])
                places = np.concatenate([p for p, _, _ in found])
                rows = _grouped(begun.part_nos[places], groups, np.concatenate([w for _, w, _ in found]))
            for some in chunks(rows, 256):
                with index_writing(self._db) as session:
                    insert_rows(session, tables.PartGroup, [row[:5] for row in some], ignore=True)
                    insert_rows(session, tables.PartIds, [(*row[:2], row[5]) for row in some], ignore=True)

    def _finish(self, begun: _Begun) -> None:
        part, own, group = tables.ClipPart, tables.ArtifactPart, tables.PartGroup
        numbers = sorted(set(begun.part_nos.tolist()))
        with index_writing(self._db) as session:
            for some in chunks(begun.part_nos[begun.missing].tolist()):
                session.execute(update(part).where(part.part_no.in_(some)).values(complete=True))
            insert_rows(session, own, [(begun.artifact_no, number) for number in numbers], ignore=True)
            counted = (
                select(own.artifact_no, group.group_no, func.sum(group.samples))
                .join(group, group.part_no == own.part_no)
                .where(own.artifact_no == begun.artifact_no)
                .group_by(own.artifact_no, group.group_no)
            )
            total = tables.ArtifactGroup
            if session.scalar(select(total.group_no).where(total.artifact_no == begun.artifact_no).limit(1)) is None:
                session.execute(insert(total).from_select(["artifact_no", "group_no", "samples"], counted))
            _complete(session, begun.artifact_no, numbers)

    def _index_urls(self, artifact_id: str, storage: Storage) -> int:
        """Which URL each listed file came from, as far as the listing knows."""
        with tempfile.TemporaryDirectory(prefix="listing-") as cache:
            artifact = Artifact(storage.uri, artifact_id, ArtifactKind.SOURCE, Path(cache))
            listed = {LISTING, SOURCE_FACTS} <= set(artifact.names())
            with index_writing(self._db) as session:
                number = _index_row(session, artifact_id, ArtifactKind.SOURCE, 0).artifact_no
            added = 0
            if listed:
                name = str(json.loads(artifact.path(SOURCE_FACTS).read_bytes())["name"])
                for rows in chunks(_urls(artifact.path(LISTING)), 16_384):
                    with index_writing(self._db) as session:
                        source_no = RowWriter().source_number(session, name)
                        keyed = sorted({(url_key(url), source_no, source_key(source_id)) for url, source_id in rows})
                        insert_rows(session, tables.SourceUrl, keyed, ignore=True)
                    added += len(rows)
            with index_writing(self._db) as session:
                changed = update(tables.ClipIndex).where(tables.ClipIndex.artifact_no == number)
                session.execute(changed.values(members=added))
                _complete(session, number)
        return added


def _index_row(session: Session, artifact_id: str, kind: str, members: int) -> tables.ClipIndex:
    known = select(tables.ClipIndex).where(tables.ClipIndex.artifact_id == artifact_id)
    row = session.scalars(known.where(tables.ClipIndex.kind == str(kind))).one_or_none()
    if row is None:
        number = next_number(session, tables.ClipIndex.artifact_no)
        row = tables.ClipIndex(
            artifact_no=number, artifact_id=artifact_id, kind=str(kind), members=members, done_rows=0, complete=False
        )
        session.add(row)
        session.flush()
    session.expunge(row)
    return row


def _advance(session: Session, artifact_no: int, rows: int) -> None:
    row = tables.ClipIndex
    behind = update(row).where(row.artifact_no == artifact_no, row.done_rows < rows)
    session.execute(behind.values(done_rows=rows))


def _complete(session: Session, artifact_no: int, part_nos: Iterable[int] = ()) -> None:
    row = tables.ClipIndex
    made = update(row).where(row.artifact_no == artifact_no)
    session.execute(made.values(complete=True, parts=pack_ranges(part_nos)))


def _passes(missing: NDArray[np.bool_], sizes: Any) -> Iterator[NDArray[np.bool_]]:
    """Masks of the missing parts, each of parts with `_PASS_ROWS` rows at most (or one part)."""
    chosen, held = np.zeros_like(missing), 0
    for place in np.flatnonzero(missing).tolist():
        if held and held + sizes[place] > _PASS_ROWS:
            yield chosen
            chosen, held = np.zeros_like(missing), 0
        chosen[place] = True
        held += sizes[place]
    if chosen.any():
        yield chosen


def _grouped(parts: NDArray[np.int64], groups: NDArray[np.int64], words: NDArray[np.uint64]) -> list[tuple[Any, ...]]:
    """Rows (part, group, samples, first, last, ids) of samples in any order."""
    order = np.lexsort((words[:, 1], words[:, 0], groups, parts))
    parts, groups = parts[order], groups[order]
    data = words[order].astype(">u8").tobytes()
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(parts) != 0) | (np.diff(groups) != 0)]))
    rows = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(parts)], strict=True):
        ids = data[16 * start : 16 * end]
        rows.append((int(parts[start]), int(groups[start]), end - start, ids[:16], ids[-16:], ids))
    return rows


def _urls(path: Path) -> Iterator[tuple[str, str]]:
    """(URL, source id) of listed files that have one."""
    try:
        for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(columns=["source_id", "extra"]):
            for row in batch.filter(pc.match_substring(batch["extra"], '"url"')).to_pylist():
                url = json.loads(row["extra"]).get("url")
                if isinstance(url, str) and url.strip():
                    yield url, row["source_id"]
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DataIntegrityError(f"source listing cannot be read: {error}", where=path.name) from None
