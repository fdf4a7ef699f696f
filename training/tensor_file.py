"""safetensors files without second copies: written straight from tensors' memory and digested on the way, read as
views of their bytes. What lies on a GPU comes over a chunk at a time.

The library's own `save` makes the whole file in memory first, which a rank's share of a large state has no room for.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage, replacing, storage_faults

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPES = {name: kind for kind, name in _NAMES.items()} | {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64
}  # fmt: skip
_CHUNK_BYTES = 16 << 20
_ALIGNMENT = 8


class Written(NamedTuple):
    size_bytes: int
    sha256: str


def header_of(tensors: Mapping[str, Tensor]) -> bytes:
    """What stands before the data, its own length included; the data follows in the mapping's order."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_stream(stream: BinaryIO, tensors: Mapping[str, Tensor]) -> Written:
    """Write tensors to an open file. The interpreter is free for other threads all but a moment: copies, digests and
    writes of large pieces do not hold it."""
    sha, size = hashlib.sha256(), 0
    for chunk in _chunks(tensors):
        sha.update(chunk)
        stream.write(chunk)
        size += len(chunk)
    return Written(size, sha.hexdigest())


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Header and data; a chunk is good until the next one is asked for."""
    yield memoryview(header_of(tensors))
    room: Tensor | None = None  # of host memory, pinned: several times as fast a way from a GPU
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.device.type == "cuda" and room is None:
            with torch.cuda.device(flat.device):
                room = torch.empty(_CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
        yield from _through(flat, room) if flat.device.type == "cuda" else _in_place(flat)


def _in_place(flat: Tensor) -> Iterator[memoryview]:
    data: Any = flat.numpy()
    whole = memoryview(data)
    for first in range(0, len(whole), _CHUNK_BYTES):
        yield whole[first : first + _CHUNK_BYTES]


def _through(flat: Tensor, room: Tensor | None) -> Iterator[memoryview]:
    """Chunks of bytes that lie elsewhere, by way of `room`."""
    assert room is not None
    for part in flat.split(room.numel()):
        here = room[: part.numel()]
        here.copy_(part)  # over on return
        data: Any = here.numpy()
        yield memoryview(data)


def write_tensors(storage: Storage, path: str, tensors: Mapping[str, Tensor]) -> Written:
    """Write a file of a storage, atomic for its readers, synced to disk."""
    if storage.is_local:
        target = storage.local_root / path
        with storage_faults(storage.uri), replacing(target) as temporary, temporary.open("wb") as stream:
            return write_stream(stream, tensors)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "file"
        with storage_faults(scratch), local.open("wb") as stream:
            written = write_stream(stream, tensors)
        storage.put_file(local, path)
        return written


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file in memory, as views of its bytes: nothing is copied, so nothing may write to them.

    Raises DataIntegrityError when it is no such file.
    """
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:start])
        entries.pop("__metadata__", None)
        return {name: _view(data, start, **entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DataIntegrityError(f"not a safetensors file: {error}", value=f"{len(data)} bytes") from None


def _view(data: bytes, start: int, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> Tensor:
    kind = _DTYPES[dtype]
    first, last = data_offsets
    if first == last:
        return torch.empty(shape, dtype=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of bytes that cannot be written
        return torch.frombuffer(data, dtype=kind, count=(last - first) // kind.itemsize, offset=start + first).reshape(
            shape
        )
