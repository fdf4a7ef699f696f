"""WebDataset shards as deterministic tar files, with the place and digest of every member.

Same samples, same limits, same bytes: order as given, no times, no owners, plain ustar headers.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import MEMBER_SUFFIX, MEMBERS, MemberRef, member, read_member

SHARDS = "shards"
_BLOCK = tarfile.BLOCKSIZE
_MODE = 0o644


@dataclass(frozen=True)
class Sample:
    """One sample: `key` names its members; `group` keeps unlike samples (other buckets) in other shards."""

    key: str
    group: str
    members: Mapping[str, bytes]  # latent, text, meta


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def member_name(key: str, name: str) -> str:
    return f"{key}.{MEMBER_SUFFIX[name]}"


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _tar_bytes(sample: Sample) -> int:
    return sum(_BLOCK + _padded(len(data)) for data in sample.members.values())


class ShardWriter:
    """Writes samples in the order given into `directory`; a shard ends with its group, at `samples`, or before
    `size_bytes` would be passed. Use as a context manager."""

    def __init__(self, directory: Path, *, samples: int, size_bytes: int) -> None:
        self._directory, self._samples, self._size_bytes = directory, samples, size_bytes
        self._stream: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None
        self._group, self._held, self._used, self._keys = "", 0, 0, set[str]()
        self.shards: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, sample: Sample) -> dict[str, MemberRef]:
        """Append a sample; returns where each member stands. Raises ValueError for a key seen before or for
        members other than the three of the index."""
        if sample.key in self._keys:
            raise ValueError(f"sample {sample.key} stands twice in one dataset")
        if set(sample.members) != set(MEMBERS):
            raise ValueError(f"sample {sample.key} has members {sorted(sample.members)}, not {sorted(MEMBERS)}")
        self._keys.add(sample.key)
        if self._is_full(sample):
            self._close()
        if self._tar is None:
            self._open(sample.group)
        self._held += 1
        self._used += _tar_bytes(sample)
        return {name: self._append(member_name(sample.key, name), sample.members[name]) for name in MEMBERS}

    def _is_full(self, sample: Sample) -> bool:
        return self._held > 0 and (
            self._group != sample.group
            or self._held >= self._samples
            or self._used + _tar_bytes(sample) + 2 * _BLOCK > self._size_bytes
        )

    def _open(self, group: str) -> None:
        self.shards.append(shard_name(len(self.shards)))
        self._stream = (self._directory / self.shards[-1]).open("wb")
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._group, self._held, self._used = group, 0, 0

    def _append(self, name: str, data: bytes) -> MemberRef:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), _MODE, 0
        start = self._tar.offset + _BLOCK
        self._tar.addfile(info, io.BytesIO(data))
        return MemberRef(self.shards[-1], start, len(data), digest_bytes(data))

    def _close(self) -> None:
        if self._tar is not None and self._stream is not None:
            self._tar.close()
            self._stream.close()
            self._tar = self._stream = None
            self._held = 0


def verify_shards(directory: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Read every member of every index row by seeking, and every tar from its start; both must agree.

    Raises DataIntegrityError naming the first difference.
    """
    indexed: dict[str, dict[str, MemberRef]] = {}
    for row in rows:
        for name in MEMBERS:
            reference = member(dict(row), name)
            indexed.setdefault(reference.shard, {})[member_name(str(row["sample_id"]), name)] = reference
            read_member(directory, reference)
    present = {p.name for p in directory.glob("*.tar")}
    if present != set(indexed):
        raise DataIntegrityError(
            "shards and index differ", value=sorted(present ^ set(indexed))[0], where=str(directory)
        )
    for shard, members in sorted(indexed.items()):
        found = {i.name: (i.offset_data, i.size) for i in _headers(directory / shard)}
        if found != {name: (r.offset, r.size_bytes) for name, r in members.items()}:
            raise DataIntegrityError("tar headers and index differ", value=shard, where=str(directory))


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield from tar
    except tarfile.TarError as error:
        raise DataIntegrityError(f"shard is no tar file: {error}", value=path.name) from None
