"""What a save of resume state consists of: its files, its manifest, and the fragments inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from safetensors import safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from m4v.core.config import FrozenModel
from m4v.core.storage import Storage, storage_faults

PARTS = ("master", "exp_avg", "exp_avg_sq", "ema")
Row = dict[str, object]
Kind = Literal["ephemeral", "permanent"]


class StateFile(FrozenModel):
    """One file of a save, with the flat range [offset, offset + elements) of every parameter inside."""

    path: str
    size_bytes: int
    sha256: str
    ranges: dict[str, tuple[int, int]] = {}


class SaveManifest(FrozenModel):
    """`step` steps are finished. `lineage` lists (first step, world size) of the runs behind it. Retention deletes
    `ephemeral` saves only."""

    schema_version: int = 1
    step: int
    kind: Kind = "ephemeral"
    shapes: dict[str, tuple[int, ...]]
    has_ema: bool
    files: tuple[StateFile, ...]
    metrics: tuple[StateFile, ...]
    lineage: tuple[tuple[int, int], ...]

    @property
    def world_size(self) -> int:
        return self.lineage[-1][1]


@dataclass(frozen=True)
class Shard:
    """One fragment with everything that resumes it; `ema` is None without EMA. Only a `primary` one is saved."""

    name: str
    offset: int
    master: Tensor
    moments: tuple[Tensor, Tensor]
    ema: Tensor | None
    primary: bool = True

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        tensors = (self.master, *self.moments, self.ema)
        return ((key, t) for key, t in zip(PARTS, tensors, strict=True) if t is not None)


@contextmanager
def saved_tensors(storage: Storage, file: StateFile) -> Iterator[Callable[[str, int, int], Tensor]]:
    """A function of (name, first, last) that reads a flat range of a tensor of the file; from a local disk it reads
    no more than that."""
    if storage.is_local:
        with storage_faults(storage.uri), safe_open(storage.local_root / file.path, framework="pt") as opened:
            yield lambda name, first, last: opened.get_slice(name)[first:last]
        return
    loaded = load_tensors(storage.read_bytes(file.path))
    yield lambda name, first, last: loaded[name][first:last]


def elements(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def overlap(saved: tuple[int, int], shard: Shard) -> tuple[int, int] | None:
    """Flat range that a saved (offset, count) and a shard share."""
    first = max(saved[0], shard.offset)
    last = min(saved[0] + saved[1], shard.offset + shard.master.numel())
    return (first, last) if first < last else None
