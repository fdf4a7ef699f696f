"""Records of CSV, JSON and JSON-lines tables; a damaged record is one Rejected, never the end of the table.

Columns go by header name, never by position, and names keep their spaces.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple, cast

from dataprep.sources.listing import Rejected
from dataprep.sources.text import decode

MAX_LINE_BYTES = 16 << 20  # a file without line ends must not fill the memory
MAX_RECORD_LINES = 2000  # a quote that never closes must not swallow the table


class Record(NamedTuple):
    """A row: its number (from 1, without the header), the byte where it begins (None in JSON), its fields."""

    row: int
    offset: int | None
    fields: Mapping[str, object]


def _buffered(stream: IO[bytes]) -> io.BufferedIOBase:
    """Files of remote storage read single lines slowly and without a limit."""
    if isinstance(stream, io.BufferedIOBase):
        return stream
    return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)


class _Lines:
    """Lines of a byte stream for csv.reader: remembers where each began and can take lines back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = _buffered(stream)
        self._returned: deque[tuple[int, bytes]] = deque()
        self._offset = 0
        self.record: list[tuple[int, bytes]] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.record and len(self.record) >= MAX_RECORD_LINES:
            raise csv.Error(f"record is longer than {MAX_RECORD_LINES} lines")
        if self._returned:
            item = self._returned.popleft()
        else:
            line = self._stream.readline(MAX_LINE_BYTES)
            if not line:
                raise StopIteration
            item = (self._offset, line)
            self._offset += len(line)
        self.record.append(item)
        return decode(item[1]) if item[0] == 0 else item[1].decode("utf-8", errors="replace")

    def begin(self) -> None:
        self.record = []

    def take_back(self) -> None:
        """Return all but the first line of the current record, to be read as records of their own."""
        self._returned.extendleft(reversed(self.record[1:]))
        self.record = self.record[:1]


def read_csv(stream: IO[bytes], path: str, delimiter: str | None = None) -> Iterator[Record | Rejected]:
    """Records of a delimited table; the delimiter is the header's most frequent of comma, tab, semicolon.

    A record with too few or too many fields, or with an open quote, is rejected as `bad_row` with its number
    and byte offset; the lines that an open quote swallowed are read again as records.
    """
    lines = _Lines(stream)
    first = next(lines, "")
    delimiter = delimiter or max(",\t;", key=first.count)
    lines.record, rest = [], lines.record
    lines._returned.extendleft(rest)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    row = 0
    while True:
        lines.begin()
        try:
            fields = next(reader, None)
            problem = None
        except csv.Error as error:
            fields, problem = [], str(error)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
        if fields is None:
            return
        offset = lines.record[0][0]
        if header is None:
            header = [name.strip() for name in fields]
            if problem or len(set(header)) != len(header):
                yield Rejected(path, None, "bad_table", f"header: {problem or 'a column stands twice'}")
                return
            continue
        if not fields and not problem:
            continue  # an empty line
        row += 1
        problem = problem or _count_problem(fields, header)
        if problem:
            lines.take_back()
            yield Rejected(path, row, "bad_row", f"byte {offset}: {problem}")
        else:
            yield Record(row, offset, dict(zip(header, fields, strict=True)))


def _count_problem(fields: list[str], header: list[str]) -> str | None:
    return None if len(fields) == len(header) else f"{len(fields)} fields instead of {len(header)}"


def read_json(data: bytes, path: str) -> Iterator[Record | Rejected]:
    """Objects of a JSON list, of an object of objects (key = file), or one object."""
    try:
        value = json.loads(decode(data))
    except ValueError as error:
        yield Rejected(path, None, "bad_table", f"not JSON: {error}")
        return
    if isinstance(value, dict):
        nested = bool(value) and all(isinstance(v, dict) for v in value.values())
        named = bool(value) and not nested and all("." in k and isinstance(v, str | list) for k, v in value.items())
        if nested:
            value = [{"file": k, **v} for k, v in value.items()]
        elif named:
            value = [{"file": k, "caption": v} for k, v in value.items()]
        else:
            value = [value]
    if not isinstance(value, list):
        yield Rejected(path, None, "bad_table", f"a list of objects is needed, not {type(value).__name__}")
        return
    for row, item in enumerate(value, start=1):
        yield _checked(item, row, None, path)


def read_json_lines(stream: IO[bytes], path: str) -> Iterator[Record | Rejected]:
    row = offset = 0
    lines = _buffered(stream)
    while line := lines.readline(MAX_LINE_BYTES):
        text = decode(line) if offset == 0 else line.decode("utf-8", errors="replace")
        if text.strip():
            row += 1
            try:
                yield _checked(json.loads(text), row, offset, path)
            except ValueError as error:
                yield Rejected(path, row, "bad_row", f"byte {offset}: {error}")
        offset += len(line)


def _checked(item: object, row: int, offset: int | None, path: str) -> Record | Rejected:
    if isinstance(item, dict):
        return Record(row, offset, item)
    where = f"byte {offset}: " if offset is not None else ""
    return Rejected(path, row, "bad_row", f"{where}an object is needed, not {type(item).__name__}")
