"""One file against its recorded self: by what it holds where that is known, else byte by byte; a tar member by
member."""

from __future__ import annotations

import io
import mmap
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from m4v.core.errors import DataIntegrityError
from pipelines.rerun.documents import compare_json, compare_json_lines, compare_tables, compare_text
from pipelines.rerun.tensors import compare_tensors
from pipelines.rerun.verdict import FileVerdict, Place, Tolerance, Verdict, worst

Comparer = Callable[[str, memoryview, memoryview, Tolerance], FileVerdict]
_AROUND = 8  # bytes shown from the first difference on


def compare_files(path: str, recorded: Path, made: Path, tolerance: Tolerance) -> FileVerdict:
    """`path` is the file's name below its artifact."""
    with _mapped(recorded) as old, _mapped(made) as new:
        return compare_bytes(path, old, new, tolerance)


def compare_bytes(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    """A file that does not read as what its name says is compared byte by byte."""
    at = _first_byte(recorded, made)
    if at is None:
        return FileVerdict(path, Verdict.IDENTICAL)
    comparer = _COMPARERS.get(Path(path).suffix)
    if comparer is not None:
        try:
            return comparer(path, recorded, made, tolerance)
        except DataIntegrityError as error:
            sides = (_bytes_at(recorded, at), _bytes_at(made, at))
            return FileVerdict(path, Verdict.DIFFERS, first=Place(f"byte {at} ({error.what})", *sides))
    place = Place(f"byte {at}", _bytes_at(recorded, at), _bytes_at(made, at))
    return FileVerdict(path, Verdict.DIFFERS, first=place)


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes without reading them; an empty file cannot be mapped."""
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            yield memoryview(b"")
            return
        # Never closed by hand: views of it may live on in numpy arrays; it goes with the last of them.
        yield memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _first_byte(old: memoryview, new: memoryview) -> int | None:
    piece = 1 << 24
    for start in range(0, min(len(old), len(new)), piece):
        a, b = (np.frombuffer(side[start : start + piece], dtype=np.uint8) for side in (old, new))
        size = min(a.size, b.size)
        if not np.array_equal(a[:size], b[:size]):
            return start + int(np.flatnonzero(a[:size] != b[:size])[0])
    return None if len(old) == len(new) else min(len(old), len(new))


def _bytes_at(data: memoryview, at: int) -> str | None:
    return bytes(data[at : at + _AROUND]).hex() or None


def compare_archives(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    """Raises DataIntegrityError for a file that is no tar."""
    old, new = _members(recorded, path), _members(made, path)
    names = [[m.name for m in side] for side in (old, new)]
    if names[0] != names[1]:
        place = _first_name(*names)
        return FileVerdict(path, Verdict.DIFFERS, "archive", first=place)
    found: list[FileVerdict] = []
    for a, b in zip(old, new, strict=True):
        one = compare_bytes(a.name, _data(recorded, a), _data(made, b), tolerance)
        if one.verdict is Verdict.IDENTICAL and _facts(a) != _facts(b):
            one = replace(one, verdict=Verdict.DIFFERS, first=Place("header", str(_facts(a)), str(_facts(b))))
        if one.verdict is not Verdict.IDENTICAL:
            found.append(one)
    verdict = worst(one.verdict for one in found) if found else Verdict.DIFFERS
    first = next((one for one in found if one.verdict is verdict), None)
    place = Place("padding between members", None, None)
    if first is not None and first.first is not None:
        place = replace(first.first, where=f"member {first.path}: {first.first.where}")
    return FileVerdict(
        path, verdict, "archive", max_abs=_most([f.max_abs for f in found]), max_rel=_most([f.max_rel for f in found]),
        first=place, tensors=tuple(replace(t, name=f"{f.path}/{t.name}") for f in found for t in f.tensors),
        equal_parts=len(old) - len(found), parts=len(old),
    )  # fmt: skip


def _first_name(old: list[str], new: list[str]) -> Place:
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    sides = (names[at] if at < len(names) else None for names in (old, new))
    return Place(f"member number {at}", *sides)


def _most(values: list[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _members(data: memoryview, path: str) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            return archive.getmembers()
    except (tarfile.TarError, EOFError) as error:
        raise DataIntegrityError(f"file is no tar: {error}", where=path) from None


def _data(archive: memoryview, member: tarfile.TarInfo) -> memoryview:
    return archive[member.offset_data : member.offset_data + member.size]


def _facts(member: tarfile.TarInfo) -> dict[str, object]:
    return {"mode": member.mode, "mtime": member.mtime, "uid": member.uid, "gid": member.gid, "type": member.type}


_COMPARERS: dict[str, Comparer] = {
    ".safetensors": compare_tensors, ".json": compare_json, ".jsonl": compare_json_lines, ".parquet": compare_tables,
    ".tar": compare_archives, **dict.fromkeys((".txt", ".csv", ".tsv", ".md", ".html", ".svg"), compare_text),
}  # fmt: skip
