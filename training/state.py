"""Resume state: sharded saves below `context.state`, each complete once its manifest stands.

A save is a folder `saves/STEP-TOKEN` with safetensors files of each rank (flat fragments of weights, moments and EMA
with their global offsets), each rank's word that its files are there, and `manifest.json`, written last by rank 0.
A digest takes one core half a second a gigabyte: a large state is cut into files that threads write and read together.
Fragments load at any rank count and ZeRO stage. Metric rows go to `metrics/` once, in the save that covers them, and
stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from m4v.core.canonical import canonical_json, digest_bytes
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage
from m4v.core.threads import together
from training.saved import Row, SaveManifest, Shard, StateFile, elements, overlap, saved_tensors
from training.tensor_file import write_tensors

MANIFEST = "manifest.json"
FILE_BYTES = 2 << 30  # a rank's file ends before it would pass so many


class Candidate(NamedTuple):
    """A committed save: its folder, and its manifest unless that cannot be read."""

    folder: str
    manifest: SaveManifest | None


class PassedOver(NamedTuple):
    """A committed save that is not what its manifest says, and why."""

    folder: str
    reason: str


class StateStore:
    """Saves of one stage run. Any rank may read; writing follows `write_shards` and `report` (all), `reports` and
    `commit` (rank 0). `keep`: newest ephemeral saves that retention leaves; permanent ones it never touches."""

    def __init__(self, storage: Storage, keep: int, token: str) -> None:
        self.storage, self._keep, self._token = storage, keep, token
        self.passed_over: list[PassedOver] = []  # by `newest_verified`
        self._kinds: dict[str, str] = {}  # of committed saves, by folder
        self._checked: set[str] = set()  # files whose bytes this process has held against their digest

    def folder(self, step: int) -> str:
        # The token keeps two attempts at one step apart: a half-written folder is never written into.
        return f"saves/{step:010d}-{self._token}"

    def write_shards(self, step: int, rank: int, shards: Sequence[Shard]) -> tuple[StateFile, ...]:
        """Write this rank's files of a save and read them back; they do not count until `commit`.

        Raises DataIntegrityError when other bytes come back than were written.
        """
        portions = portions_of([s for s in shards if s.primary])
        return tuple(together(lambda some: self._write(step, rank, *some), enumerate(portions)))

    def _write(self, step: int, rank: int, number: int, shards: Sequence[Shard]) -> StateFile:
        tensors = {f"{s.name}|{part}": t for s in shards for part, t in s.parts()}
        path = f"{self.folder(step)}/rank-{rank:05d}{f'-{number:05d}' if number else ''}.safetensors"
        written = write_tensors(self.storage, path, tensors)
        ranges = {s.name: (s.offset, s.master.numel()) for s in shards}
        file = StateFile(path=path, size_bytes=written.size_bytes, sha256=written.sha256, ranges=ranges)
        if (fault := self._fault(file)) is not None:
            raise DataIntegrityError(f"resume state was not stored: {fault}", value=path, where=self.storage.uri)
        return file

    def report(self, step: int, rank: int, files: Sequence[StateFile]) -> None:
        """Tell rank 0, through the storage, that this rank's files are there and verified."""
        self.storage.write_bytes(self._report(step, rank), canonical_json([file.canonical() for file in files]))

    def reports(self, step: int, world_size: int) -> tuple[StateFile, ...] | None:
        """The files of all ranks, by rank; None while one is missing."""
        paths = [self._report(step, rank) for rank in range(world_size)]
        if not all(self.storage.exists(path) for path in reversed(paths)):
            return None
        return tuple(file for path in paths for file in _FILES.validate_json(self.storage.read_bytes(path)))

    def write_metrics(self, rows: Sequence[Row]) -> StateFile:
        """Write the metric rows of the steps since the last save."""
        data = b"".join(canonical_json(row) + b"\n" for row in rows)
        path = f"metrics/{rows[0]['step']:010d}-{rows[-1]['step']:010d}.jsonl"
        self.storage.write_bytes(path, data)
        return StateFile(path=path, size_bytes=len(data), sha256=digest_bytes(data))

    def commit(self, manifest: SaveManifest) -> None:
        """Make a save exist, then drop older ephemeral ones beyond the number kept. Rank 0, after all files are
        written."""
        folder = self.folder(manifest.step)
        self.storage.write_bytes(f"{folder}/{MANIFEST}", canonical_json(manifest.canonical()))
        self._kinds[folder] = manifest.kind
        ephemeral = [f for f in self._folders() if self._kind(f) == "ephemeral"]
        for old in ephemeral[self._keep :]:
            self.drop(old)

    def committed(self, step: int) -> bool:
        """Does this attempt's save of a step exist?"""
        return self.storage.exists(f"{self.folder(step)}/{MANIFEST}")

    def candidates(self) -> list[Candidate]:
        """All committed saves, newest step first."""
        folders = [f for f in self._folders() if self.storage.exists(f"{f}/{MANIFEST}")]
        return [Candidate(folder, self._read(folder)) for folder in folders]

    def faults(self, manifest: SaveManifest, rank: int = 0, world_size: int = 1) -> list[str]:
        """What is wrong with a save's files; the ranks share the reading."""
        files = (*manifest.files, *manifest.metrics)[rank::world_size]
        found = together(self._fault, files)
        return [f"{file.path}: {fault}" for file, fault in zip(files, found, strict=True) if fault is not None]

    def trust(self, manifest: SaveManifest) -> None:
        """The ranks have verified a save together, each some of its files: none reads all of them to see that again."""
        self._checked.update(file.path for file in (*manifest.files, *manifest.metrics))

    def newest_verified(
        self, candidates: Sequence[Candidate] | None = None,
        check: Callable[[SaveManifest], list[str]] | None = None,
    ) -> SaveManifest | None:  # fmt: skip
        """The newest save whose every file is there with its digest; damaged ones are noted in `passed_over`. None
        when nothing was ever saved. `check` tells the faults of a save: `faults`, or that of all ranks together.

        Raises DataIntegrityError when there are saves and none is whole.
        """
        self.passed_over = []
        for folder, manifest in self.candidates() if candidates is None else candidates:
            faults = ["manifest cannot be read"] if manifest is None else (check or self.faults)(manifest)
            if manifest is not None and not faults:
                return manifest
            self.passed_over.append(PassedOver(folder, "; ".join(faults)))
        if self.passed_over:
            raise DataIntegrityError(
                "every save of the stage is damaged", value=self.passed_over[0].reason, where=self.storage.uri,
                next_step="restore the files from a backup, or delete the folder to train the stage from its start",
            )  # fmt: skip
        return None

    def drop_unfinished(self) -> None:
        """Delete folders that never got a manifest. Rank 0, before any rank writes."""
        for folder in self._folders():
            if not self.storage.exists(f"{folder}/{MANIFEST}"):
                self.storage.delete(folder)

    def drop(self, folder: str) -> None:
        """Delete a save. The manifest goes first: a folder half deleted is then no save."""
        self.storage.delete(f"{folder}/{MANIFEST}")
        self.storage.delete(folder)
        self._kinds.pop(folder, None)

    def metric_rows(self, manifest: SaveManifest) -> bytes:
        """All metric rows up to the save, as JSON lines."""
        return b"".join(self._bytes(f) for f in manifest.metrics)

    def whole(self, manifest: SaveManifest, part: str) -> dict[str, Tensor]:
        """Every parameter of a save, assembled from all ranks' fragments: `master` weights or `ema`.

        Raises DataIntegrityError when the fragments leave a gap.
        """
        tensors = {name: torch.empty(elements(shape)) for name, shape in manifest.shapes.items()}

        def fill(file: StateFile) -> None:
            self._check(file)
            with saved_tensors(self.storage, file) as read:
                for name, (offset, count) in file.ranges.items():
                    tensors[name][offset : offset + count] = read(f"{name}|{part}", 0, count)

        together(fill, manifest.files)
        filled = Counter[str]()
        for file in manifest.files:
            filled.update({name: count for name, (_, count) in file.ranges.items()})
        for name, tensor in tensors.items():
            if filled[name] != tensor.numel():
                raise DataIntegrityError("save does not hold all of a parameter", value=name, where=self.storage.uri)
        return {name: tensors[name].view(shape) for name, shape in manifest.shapes.items()}

    def load_into(self, manifest: SaveManifest, shards: Sequence[Shard]) -> None:
        """Fill moments and EMA of this rank's shards (masters come in through the model, see `whole`)."""
        own = {s.name: s for s in shards}

        def fill(file: StateFile) -> None:
            overlaps = {n: overlap(r, own[n]) for n, r in file.ranges.items() if n in own}
            wanted = {name: o for name, o in overlaps.items() if o is not None}
            if wanted:
                self._check(file)
                with saved_tensors(self.storage, file) as read:
                    for name, (first, last) in wanted.items():
                        self._copy(own[name], read, first, last, file.ranges[name][0])

        together(fill, manifest.files)

    @staticmethod
    def _copy(shard: Shard, read: Callable[[str, int, int], Tensor], first: int, last: int, offset: int) -> None:
        with torch.no_grad():
            for part, target in shard.parts():
                if part != "master":
                    source = read(f"{shard.name}|{part}", first - offset, last - offset)
                    target.view(-1)[first - shard.offset : last - shard.offset].copy_(source)

    def _report(self, step: int, rank: int) -> str:
        return f"{self.folder(step)}/rank-{rank:05d}.json"

    def _folders(self) -> list[str]:
        """Folders of saves, newest step first."""
        return [f"saves/{name}" for name in sorted(self.storage.directories("saves"), reverse=True)]

    def _kind(self, folder: str) -> str | None:
        """Kind of a committed save; None of what is none."""
        if folder not in self._kinds:
            if not self.storage.exists(f"{folder}/{MANIFEST}"):
                return None
            manifest = self._read(folder)
            # Whoever cannot read it any more must not delete it: it may have been permanent.
            self._kinds[folder] = "unreadable" if manifest is None else manifest.kind
        return self._kinds[folder]

    def _read(self, folder: str) -> SaveManifest | None:
        try:
            return SaveManifest.model_validate_json(self.storage.read_bytes(f"{folder}/{MANIFEST}"))
        except ValidationError:
            return None

    def _fault(self, file: StateFile) -> str | None:
        """Why a file is not what its save says; None when it is."""
        if not self.storage.exists(file.path):
            return "missing"
        if self.storage.digest(file.path) != file.sha256:
            return "bytes differ from their digest"
        self._checked.add(file.path)
        return None

    def _check(self, file: StateFile) -> None:
        fault = None if file.path in self._checked else self._fault(file)
        if fault is not None:
            raise DataIntegrityError(
                f"resume state differs from its manifest: {fault}", value=file.path, where=self.storage.uri
            )

    def _bytes(self, file: StateFile) -> bytes:
        self._check(file)
        return self.storage.read_bytes(file.path)


_FILES = TypeAdapter(tuple[StateFile, ...])


def portions_of(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Shards in files of at most `FILE_BYTES`, in their order; one, empty, of a rank that has none."""
    found: list[list[Shard]] = [[]]
    size = 0
    for shard in shards:
        own = sum(tensor.numel() * tensor.element_size() for _, tensor in shard.parts())
        if found[-1] and size + own > FILE_BYTES:
            found.append([])
            size = 0
        found[-1].append(shard)
        size += own
    return found


__all__ = ["Candidate", "PassedOver", "Row", "SaveManifest", "Shard", "StateFile", "StateStore"]
