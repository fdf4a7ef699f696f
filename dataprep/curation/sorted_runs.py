"""An external sort of Arrow tables: sorted runs in unnamed temporary files, read back by columns or merged."""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

RUN_ROWS = 131_072
_RUN_BYTES = 256 << 20
_BATCH_ROWS = 2048  # of a run, read together
_MERGED_ROWS = 32_768  # about as many come out of a merge together

Key = tuple[object, ...]


class SortedRuns:
    """Rows of `schema` that are added in any order, to be read in the order of the columns `keys` (never null,
    together unique). They are numbered in the column `row`, run after run."""

    def __init__(self, schema: pa.Schema, keys: Sequence[str], row: str) -> None:
        self._schema = schema.append(pa.field(row, pa.int64()))
        self._keys, self._row = tuple(keys), row
        self._waiting: list[pa.Table] = []
        self._held = self._bytes = self._numbered = 0
        self._runs: list[pa.NativeFile] = []
        self._sampled: list[Key] = []  # of the first row of each batch

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._held += table.num_rows
        self._bytes += table.nbytes
        if self._held >= RUN_ROWS or self._bytes >= _RUN_BYTES:
            self._store()

    def _store(self) -> None:
        """Sort and number what waits, and bring it into a file that has no name any more."""
        table = _sorted(pa.concat_tables(self._waiting), self._keys)
        self._waiting, self._held, self._bytes = [], 0, 0
        numbers = pa.array(range(self._numbered, self._numbered + table.num_rows), pa.int64())
        table = table.append_column(self._row, numbers)
        self._numbered += table.num_rows
        handle, name = tempfile.mkstemp(prefix="clips-")
        os.close(handle)
        try:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.OSFile(name, "wb") as file, pa.ipc.new_file(file, self._schema, options=options) as stream:
                stream.write_table(table, max_chunksize=_BATCH_ROWS)
            self._runs.append(pa.OSFile(name))
        finally:
            Path(name).unlink()
        self._sampled += [_key(table, place, self._keys) for place in range(0, table.num_rows, _BATCH_ROWS)]

    def _stored(self) -> list[pa.NativeFile]:
        if self._waiting:
            self._store()
        return self._runs

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, in the order of their numbers."""
        options = pa.ipc.IpcReadOptions(included_fields=sorted(self._schema.get_field_index(n) for n in names))
        for run in self._stored():
            reader = pa.ipc.open_file(run, options=options)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    def merged(self) -> Iterator[pa.Table]:
        """All rows in order, each table of about as many."""
        runs = [_Run(run, self._keys) for run in self._stored()]
        bounds: list[Key | None] = [*sorted(self._sampled)[:: max(1, _MERGED_ROWS // _BATCH_ROWS)], None]
        for bound in bounds:
            table = _sorted(pa.concat_tables([self._schema.empty_table(), *(r.take(bound) for r in runs)]), self._keys)
            if table.num_rows:
                yield table


class _Run:
    """A sorted run, read batch by batch."""

    def __init__(self, run: pa.NativeFile, keys: tuple[str, ...]) -> None:
        self._reader, self._keys, self._next = pa.ipc.open_file(run), keys, 0
        self._rest: pa.Table = self._reader.schema.empty_table()

    def take(self, bound: Key | None) -> pa.Table:
        """The rows that come next and stand before `bound`; all with None."""
        parts = [self._rest]
        while self._next < self._reader.num_record_batches and not self._reaches(parts[-1], bound):
            parts.append(pa.Table.from_batches([self._reader.get_batch(self._next)]))
            self._next += 1
        whole = pa.concat_tables(parts)
        end = whole.num_rows if bound is None else self._first_from(whole, bound)
        self._rest = whole.slice(end)
        return whole.slice(0, end)

    def _reaches(self, part: pa.Table, bound: Key | None) -> bool:
        return bound is not None and part.num_rows > 0 and _key(part, part.num_rows - 1, self._keys) >= bound

    def _first_from(self, part: pa.Table, bound: Key) -> int:
        return bisect.bisect_left(range(part.num_rows), bound, key=lambda place: _key(part, place, self._keys))


def _key(table: pa.Table, place: int, keys: tuple[str, ...]) -> Key:
    return tuple(table[name][place].as_py() for name in keys)


def _sorted(table: pa.Table, keys: tuple[str, ...]) -> pa.Table:
    return table.combine_chunks().sort_by([(name, "ascending") for name in keys]).combine_chunks()
