"""Tensors on disk without loading them: safetensors headers, and a writer that streams.

Torch-free. The format is an 8-byte little-endian length, a JSON header `{name: {dtype, shape, data_offsets}}`
and the tensors' bytes (github.com/huggingface/safetensors, format description).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from m4v.core.errors import DataIntegrityError

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100 << 20  # the library's own limit
_CHUNK_BYTES = 4 << 20
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class TensorInfo:
    """`dtype` in the format's own spelling (F32, BF16, …)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


class TensorFile(Protocol):
    """Named tensors in one file, whatever its format."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """The little-endian bytes of a tensor in C order, a few MiB at a time."""
        ...


class SafetensorsFile:
    """`TensorFile` over a safetensors file. Raises DataIntegrityError, naming the file, when the header does
    not parse, tensors overlap or leave gaps, or the file is longer or shorter than they need."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0

    @cached_property
    def _header(self) -> dict[str, tuple[TensorInfo, int]]:
        size = self.path.stat().st_size
        with self.path.open("rb") as stream:
            prefix = stream.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else _LARGEST_HEADER + 1
            if length > min(size - _LENGTH.size, _LARGEST_HEADER):
                raise self._broken("is truncated or not in safetensors format", size)
            raw = stream.read(length)
        self._start = _LENGTH.size + length
        try:
            found = _parse_header(json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(f"has a header that does not parse ({error})", size) from None
        end = 0
        for info, begin in sorted(found.values(), key=lambda pair: (pair[1], pair[0].size_bytes)):
            if begin != end:
                raise self._broken("has tensors that overlap or leave a gap", begin)
            end += info.size_bytes
        if self._start + end != size:
            raise self._broken(f"has {size} bytes where its header needs {self._start + end}", None)
        return found

    def _broken(self, what: str, value: object) -> DataIntegrityError:
        return DataIntegrityError(
            f"{self.path.name} {what}", value=value, where=str(self.path.parent), next_step=_AGAIN
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: info for name, (info, _) in self._header.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        info, begin = self._header[name]
        left = info.size_bytes
        with self.path.open("rb") as stream:
            stream.seek(self._start + begin)
            while left:
                chunk = stream.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise self._broken("ends too early", name)
                left -= len(chunk)
                yield chunk


def _parse_header(header: dict[str, Any]) -> dict[str, tuple[TensorInfo, int]]:
    found: dict[str, tuple[TensorInfo, int]] = {}
    for name, row in header.items():
        if name == "__metadata__":
            continue
        begin, end = row["data_offsets"]
        info = TensorInfo(str(row["dtype"]), tuple(row["shape"]))
        if info.dtype not in DTYPE_BYTES or any(not isinstance(n, int) or n < 0 for n in (*info.shape, begin, end)):
            raise ValueError(f"tensor {name} is {info.dtype} {info.shape}")
        if end - begin != info.size_bytes:
            raise ValueError(f"tensor {name} has {end - begin} bytes for {info.dtype} {info.shape}")
        found[name] = (info, begin)
    return found


def write_tensors(path: Path, tensors: Mapping[str, TensorInfo], chunks: Mapping[str, Iterator[bytes]]) -> None:
    """Write a safetensors file tensor by tensor; equal tensors give equal bytes.

    Wide types come first so that every tensor stays aligned (the library's own order). Raises ValueError when
    an iterator yields another number of bytes than its tensor has.
    """
    order = sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name].dtype], name))
    header: dict[str, object] = {}
    at = 0
    for name in order:
        end = at + tensors[name].size_bytes
        header[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            start = out.tell()
            for chunk in chunks[name]:
                out.write(chunk)
            if out.tell() - start != tensors[name].size_bytes:
                raise ValueError(f"tensor {name} has {out.tell() - start} bytes, not {tensors[name].size_bytes}")
