"""Resume state: sharded saves below `context.state`, each complete once its manifest stands.

A save is a folder `saves/STEP-TOKEN` with one safetensors file per rank (flat fragments of weights, moments and
EMA with their global offsets) and `manifest.json`, written last by rank 0. Fragments load at any rank count
and ZeRO stage. Metric rows go to `metrics/` once, in the save that covers them, and stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from m4v.core.canonical import canonical_json, digest_bytes
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage

MANIFEST = "manifest.json"
PARTS = ("master", "exp_avg", "exp_avg_sq", "ema")
Row = dict[str, object]


class StateFile(FrozenModel):
    """One file of a save, with the flat range [offset, offset + elements) of every parameter inside."""

    path: str
    size_bytes: int
    sha256: str
    ranges: dict[str, tuple[int, int]] = {}


class SaveManifest(FrozenModel):
    """`step` steps are finished. `lineage` lists (first step, world size) of the runs behind it."""

    schema_version: int = 1
    step: int
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


class StateStore:
    """Saves of one stage run. Any rank may read; writing follows `write_shards` (all) then `commit` (rank 0)."""

    def __init__(self, storage: Storage, keep: int, token: str) -> None:
        self._storage, self._keep, self._token = storage, keep, token

    def folder(self, step: int) -> str:
        # The token keeps two attempts at one step apart: a half-written folder is never written into.
        return f"saves/{step:010d}-{self._token}"

    def write_shards(self, step: int, rank: int, shards: Sequence[Shard]) -> StateFile:
        """Write this rank's file of a save; it does not count until `commit`."""
        mine = [s for s in shards if s.primary]
        tensors = {f"{s.name}|{part}": t.detach().cpu() for s in mine for part, t in s.parts()}
        data = save_tensors({key: t.contiguous() for key, t in tensors.items()})
        path = f"{self.folder(step)}/rank-{rank:05d}.safetensors"
        self._storage.write_bytes(path, data)
        ranges = {s.name: (s.offset, s.master.numel()) for s in mine}
        return StateFile(path=path, size_bytes=len(data), sha256=digest_bytes(data), ranges=ranges)

    def write_metrics(self, rows: Sequence[Row]) -> StateFile:
        """Write the metric rows of the steps since the last save."""
        data = b"".join(canonical_json(row) + b"\n" for row in rows)
        path = f"metrics/{rows[0]['step']:010d}-{rows[-1]['step']:010d}.jsonl"
        self._storage.write_bytes(path, data)
        return StateFile(path=path, size_bytes=len(data), sha256=digest_bytes(data))

    def commit(self, manifest: SaveManifest) -> None:
        """Make a save exist, then drop older ones beyond the number kept. Rank 0, after all files are written."""
        self._storage.write_bytes(f"{self.folder(manifest.step)}/{MANIFEST}", canonical_json(manifest.canonical()))
        committed = [f for f in self._folders() if self._storage.exists(f"{f}/{MANIFEST}")]
        for folder in committed[self._keep :]:
            self._drop(folder)

    def newest_verified(self) -> SaveManifest | None:
        """The newest save whose every file is there with its digest; a damaged one is passed over. Rank 0."""
        for folder in self._folders():
            manifest = self._read(folder)
            if manifest is not None and all(self._intact(f) for f in (*manifest.files, *manifest.metrics)):
                return manifest
        return None

    def drop_unfinished(self) -> None:
        """Delete folders that never got a manifest. Rank 0, before any rank writes."""
        for folder in self._folders():
            if not self._storage.exists(f"{folder}/{MANIFEST}"):
                self._storage.delete(folder)

    def metric_rows(self, manifest: SaveManifest) -> bytes:
        """All metric rows up to the save, as JSON lines."""
        return b"".join(self._checked(f) for f in manifest.metrics)

    def whole(self, manifest: SaveManifest, part: str) -> dict[str, Tensor]:
        """Every parameter of a save, assembled from all ranks' fragments: `master` weights or `ema`.

        Raises DataIntegrityError when the fragments leave a gap.
        """
        tensors = {name: torch.empty(_elements(shape)) for name, shape in manifest.shapes.items()}
        filled = dict.fromkeys(tensors, 0)
        for file in manifest.files:
            loaded = load_tensors(self._checked(file))
            for name, (offset, count) in file.ranges.items():
                tensors[name][offset : offset + count] = loaded[f"{name}|{part}"].reshape(-1)
                filled[name] += count
        for name, tensor in tensors.items():
            if filled[name] != tensor.numel():
                raise DataIntegrityError("save does not hold all of a parameter", value=name, where=self._storage.uri)
        return {name: tensors[name].view(shape) for name, shape in manifest.shapes.items()}

    def load_into(self, manifest: SaveManifest, shards: Sequence[Shard]) -> None:
        """Fill moments and EMA of this rank's shards (masters come in through the model, see `whole`)."""
        own = {s.name: s for s in shards}
        for file in manifest.files:
            overlaps = {n: _overlap(r, own[n]) for n, r in file.ranges.items() if n in own}
            wanted = {name: o for name, o in overlaps.items() if o is not None}
            if wanted:
                loaded = load_tensors(self._checked(file))
                for name, (first, last) in wanted.items():
                    self._copy(own[name], loaded, first, last, file.ranges[name][0])

    @staticmethod
    def _copy(shard: Shard, loaded: Mapping[str, Tensor], first: int, last: int, offset: int) -> None:
        with torch.no_grad():
            for part, target in shard.parts():
                if part != "master":
                    source = loaded[f"{shard.name}|{part}"].reshape(-1)[first - offset : last - offset]
                    target.view(-1)[first - shard.offset : last - shard.offset].copy_(source)

    def _folders(self) -> list[str]:
        """Folders of saves, newest step first."""
        return [f"saves/{name}" for name in sorted(self._storage.directories("saves"), reverse=True)]

    def _read(self, folder: str) -> SaveManifest | None:
        if not self._storage.exists(f"{folder}/{MANIFEST}"):
            return None
        try:
            return SaveManifest.model_validate_json(self._storage.read_bytes(f"{folder}/{MANIFEST}"))
        except ValidationError:
            return None

    def _intact(self, file: StateFile) -> bool:
        return self._storage.exists(file.path) and digest_bytes(self._storage.read_bytes(file.path)) == file.sha256

    def _checked(self, file: StateFile) -> bytes:
        data = self._storage.read_bytes(file.path)
        if digest_bytes(data) != file.sha256:
            raise DataIntegrityError("resume state differs from its manifest", value=file.path, where=self._storage.uri)
        return data

    def _drop(self, folder: str) -> None:
        # The manifest goes first: a folder half deleted is then no save.
        self._storage.delete(f"{folder}/{MANIFEST}")
        self._storage.delete(folder)


def last_step(rows: bytes) -> int:
    """Step of the last metric row, -1 when there is none."""
    lines = rows.splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else -1


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _overlap(saved: tuple[int, int], shard: Shard) -> tuple[int, int] | None:
    """Flat range that a saved (offset, count) and a shard share."""
    first = max(saved[0], shard.offset)
    last = min(saved[0] + saved[1], shard.offset + shard.master.numel())
    return (first, last) if first < last else None
