"""JSON, lines of text and tables against each other: the first difference by path, line, or row and column."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m4v.core.errors import DataIntegrityError
from pipelines.rerun.verdict import FileVerdict, Place, Tolerance, Verdict

_ROWS = 65_536
_SHOWN = 200  # characters of a differing value
Found = tuple[str, object, object]


class _Errors:
    """Differences in the order in which they stand; numbers within the tolerance count as such."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._rtol, self._atol = tolerance.of("F64")
        self.max_abs: float | None = None
        self.max_rel: float | None = None
        self.first: Place | None = None
        self.verdict = Verdict.IDENTICAL

    def add(self, where: str, old: object, new: object) -> None:
        number = isinstance(old, float) and isinstance(new, int | float) and not isinstance(new, bool)
        within = number and self._number(float(old), float(new))  # type: ignore[arg-type]
        if self.first is None or (not within and self.verdict is not Verdict.DIFFERS):
            self.first = Place(where, _shown(old), _shown(new))
        if self.verdict is not Verdict.DIFFERS:
            self.verdict = Verdict.WITHIN if within else Verdict.DIFFERS

    def _number(self, old: float, new: float) -> bool:
        if not (math.isfinite(old) and math.isfinite(new)):
            return old == new or (math.isnan(old) and math.isnan(new))
        error = abs(new - old)
        self.max_abs = max(self.max_abs or 0.0, error)
        self.max_rel = max(self.max_rel or 0.0, error / abs(old) if old else math.inf)
        return error <= self._atol + self._rtol * abs(old)

    def file(self, path: str, how: str, otherwise: Place) -> FileVerdict:
        """The verdict; files whose content is equal still differ in `otherwise`."""
        if self.first is None:
            return FileVerdict(path, Verdict.DIFFERS, how, first=otherwise)
        return FileVerdict(path, self.verdict, how, max_abs=self.max_abs, max_rel=self.max_rel, first=self.first)


def _shown(value: object) -> object:
    """As JSON can carry it, long texts cut."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def compare_json(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    errors = _Errors(tolerance)
    for where, old, new in _walk("$", _parse(recorded, path), _parse(made, path)):
        errors.add(where, old, new)
    return errors.file(path, "json", Place("spaces or the order of keys", None, None))


def compare_json_lines(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    errors = _Errors(tolerance)
    for number, (old, new) in enumerate(zip_longest(bytes(recorded).splitlines(), bytes(made).splitlines()), 1):
        if old is None or new is None:
            errors.add(f"line {number}", old and old.decode(errors="replace"), new and new.decode(errors="replace"))
            break
        if old != new:
            for where, before, after in _walk("$", _parse(old, path), _parse(new, path)):
                errors.add(f"line {number} {where}", before, after)
    return errors.file(path, "json", Place("spaces or the order of keys", None, None))


def _parse(data: memoryview | bytes, path: str) -> object:
    try:
        return json.loads(bytes(data))
    except ValueError as error:
        raise DataIntegrityError(f"file is no JSON: {error}", where=path) from None


def _walk(where: str, old: Any, new: Any) -> Iterator[Found]:
    """Differing leaves, in order of keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            place = f"{where}.{key}"
            if key not in old or key not in new:
                yield place, old.get(key, "(absent)"), new.get(key, "(absent)")
            else:
                yield from _walk(place, old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _walk(f"{where}[{number}]", a, b)
    elif isinstance(old, list) and isinstance(new, list):
        yield f"length of {where}", len(old), len(new)
    elif old != new or type(old) is not type(new):
        yield where, old, new


def compare_text(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    errors = _Errors(tolerance)
    lines = (bytes(side).decode(errors="replace").splitlines() for side in (recorded, made))
    for number, (old, new) in enumerate(zip_longest(*lines), 1):
        if old != new:
            errors.add(f"line {number}", old, new)
            break
    return errors.file(path, "text", Place("line ends", None, None))


def compare_tables(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    """Raises DataIntegrityError for a file that is no Parquet."""
    try:
        old, new = (pq.ParquetFile(pa.BufferReader(pa.py_buffer(side))) for side in (recorded, made))
    except pa.ArrowInvalid as error:
        raise DataIntegrityError(f"file is no Parquet: {error}", where=path) from None
    if not old.schema_arrow.equals(new.schema_arrow):
        place = Place("columns", str(old.schema_arrow.names), str(new.schema_arrow.names))
        return FileVerdict(path, Verdict.DIFFERS, "table", first=place)
    errors, start = _Errors(tolerance), 0
    pairs = zip(old.iter_batches(_ROWS), new.iter_batches(_ROWS), strict=False)
    for a, b in pairs:
        rows = min(a.num_rows, b.num_rows)
        for row, column, before, after in _cells(a.slice(0, rows), b.slice(0, rows)):
            errors.add(f"row {start + row}, column {column}", before, after)
        start += rows
    if old.metadata.num_rows != new.metadata.num_rows:
        errors.add("number of rows", old.metadata.num_rows, new.metadata.num_rows)
    return errors.file(path, "table", Place("how the table is laid out in the file", None, None))


def _cells(old: pa.RecordBatch, new: pa.RecordBatch) -> list[tuple[int, str, object, object]]:
    """Differing cells by row, then column."""
    found = []
    for number in range(len(old.schema.names)):
        a, b = old.column(number), new.column(number)
        if a.equals(b):
            continue
        left: Sequence[object]
        left, right = a.to_pylist(), b.to_pylist()
        found += [(row, number, x, y) for row, (x, y) in enumerate(zip(left, right, strict=True)) if not _same(x, y)]
    names = old.schema.names
    return [(row, names[column], x, y) for row, column, x, y in sorted(found, key=lambda f: f[:2])]


def _same(old: object, new: object) -> bool:
    return old == new or (isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new))
