"""safetensors files against each other, tensor by tensor and a piece at a time; torch is not needed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from m4v.core.errors import DataIntegrityError
from pipelines.rerun.verdict import FileVerdict, Place, TensorVerdict, Tolerance, Verdict, worst

_PIECE = 1 << 22  # elements compared at once
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|u1",
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def compare_tensors(path: str, recorded: memoryview, made: memoryview, tolerance: Tolerance) -> FileVerdict:
    """Raises DataIntegrityError for a file that is no safetensors."""
    (old, old_facts), (new, new_facts) = _read(recorded, path), _read(made, path)
    for name in sorted(old.keys() ^ new.keys()):
        sides = ("tensor", None) if name in old else (None, "tensor")
        return FileVerdict(path, Verdict.DIFFERS, "tensors", first=Place(f"tensor {name}", *sides))
    found = [v for v in (_compare(name, old[name], new[name], tolerance) for name in old) if v is not None]
    first = found[0].first if found else None
    verdict = worst(v.verdict for v in found)
    if old_facts != new_facts:
        verdict, first = Verdict.DIFFERS, first or Place("metadata", old_facts, new_facts)
    elif not found:  # the same tensors in another order or layout
        verdict, first = Verdict.DIFFERS, Place("layout of the header", list(old), list(new))
    bad = next((v for v in found if v.verdict is Verdict.DIFFERS), None)
    return FileVerdict(
        path, verdict, "tensors", max_abs=_most(v.max_abs for v in found), max_rel=_most(v.max_rel for v in found),
        first=bad.first if bad else first, tensors=tuple(found), equal_parts=len(old) - len(found), parts=len(old),
    )  # fmt: skip


def _most(values: Iterator[float | None] | Any) -> float | None:
    known = [v for v in values if v is not None]
    return max(known) if known else None


def _read(data: memoryview, path: str) -> tuple[dict[str, _Tensor], Mapping[str, str]]:
    """Tensors in the order of their data, and the metadata."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8 : 8 + length]))
        facts = header.pop("__metadata__", {})
        body = data[8 + length :]
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        found = {
            name: _Tensor(e["dtype"], tuple(e["shape"]), body[e["data_offsets"][0] : e["data_offsets"][1]])
            for name, e in entries
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataIntegrityError(f"file is no safetensors: {error}", where=path) from None
    return found, facts


def _compare(name: str, old: _Tensor, new: _Tensor, tolerance: Tolerance) -> TensorVerdict | None:
    """None when the tensors are identical."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        sides = (f"{t.dtype} {list(t.shape)}" for t in (old, new))
        place = Place(f"tensor {name}", *sides)
        return TensorVerdict(name, Verdict.DIFFERS, old.dtype, old.shape, None, None, None, place)
    if old.dtype not in _NUMPY:
        return _bytewise(name, old, new)
    measure = _Measure(old.dtype, tolerance)
    kind = np.dtype(_NUMPY[old.dtype])
    a, b = (np.frombuffer(t.data, dtype=kind) for t in (old, new))
    for start in range(0, a.size, _PIECE):
        measure.add(start, a[start : start + _PIECE], b[start : start + _PIECE])
    if measure.differing == 0:
        return None
    verdict = Verdict.DIFFERS if measure.outside is not None else Verdict.WITHIN
    index, before, after = measure.outside or measure.first or (0, None, None)
    place = Place(f"tensor {name} at {_index(index, old.shape)}", before, after)
    return TensorVerdict(
        name, verdict, old.dtype, old.shape, measure.differing, measure.max_abs, measure.max_rel, place
    )


def _bytewise(name: str, old: _Tensor, new: _Tensor) -> TensorVerdict | None:
    """Of a dtype that numpy does not have: equal bytes or not."""
    a, b = (np.frombuffer(t.data, dtype=np.uint8) for t in (old, new))
    different = np.flatnonzero(a != b)
    if different.size == 0:
        return None
    at = int(different[0])
    place = Place(f"tensor {name} at byte {at}", int(a[at]), int(b[at]))
    return TensorVerdict(name, Verdict.DIFFERS, old.dtype, old.shape, int(different.size), None, None, place)


def _index(flat: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, shape)] if shape else []


Found = tuple[int, float, float]  # flat index, recorded value, made value


class _Measure:
    """Errors of one tensor, collected piece by piece. `outside` is the first element beyond the tolerance."""

    def __init__(self, dtype: str, tolerance: Tolerance) -> None:
        self._dtype = dtype
        self._rtol, self._atol = tolerance.of(dtype)
        self.differing, self.max_abs, self.max_rel = 0, 0.0, 0.0
        self.first: Found | None = None
        self.outside: Found | None = None

    def add(self, start: int, old: Any, new: Any) -> None:
        bits = [part.view(np.uint8).reshape(part.size, -1) if part.size else part for part in (old, new)]
        different = np.flatnonzero((bits[0] != bits[1]).any(axis=1)) if old.size else np.empty(0, np.int64)
        if different.size == 0:
            return
        a, b = (_numbers(part[different], self._dtype) for part in (old, new))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            error = np.abs(b - a)
            error[np.isnan(a) & np.isnan(b)] = 0.0
            error[a == b] = 0.0  # two infinities, two zeros
            error[np.isnan(error)] = math.inf
            relative = np.where(a != 0, error / np.abs(a), np.where(error == 0, 0.0, math.inf))
            beyond = np.flatnonzero(error > self._atol + self._rtol * np.abs(np.where(np.isfinite(a), a, 0.0)))
        self.differing += int(different.size)
        self.max_abs, self.max_rel = max(self.max_abs, float(error.max())), max(self.max_rel, float(relative.max()))
        self.first = self.first or (start + int(different[0]), float(a[0]), float(b[0]))
        if self.outside is None and beyond.size:
            at = int(beyond[0])
            self.outside = (start + int(different[at]), float(a[at]), float(b[at]))


def _numbers(values: Any, dtype: str) -> Any:
    """As doubles; bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float64)
