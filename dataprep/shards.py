"""WebDataset shards as deterministic tar files, with the place and digest of every member.

Same samples, same limits, same bytes: order as given, no times, no owners, plain ustar headers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dataprep.digest_table import DIGEST_BYTES, DigestTable
from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import MEMBER_SUFFIX, MEMBERS, MemberRef, member, read_member
from m4v.core.storage import storage_faults, temporary_beside

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
    `size_bytes` would be passed. Shards are numbered from `first`.

    A shard gets its name when it is whole and on disk: a process that is killed, or a disk that is full, leaves none
    by halves. Use as a context manager.
    """

    def __init__(self, directory: Path, *, samples: int, size_bytes: int, first: int = 0) -> None:
        self._directory, self._samples, self._size_bytes, self._first = directory, samples, size_bytes, first
        self._open_shard: _OpenShard | None = None
        self._group, self._held, self._used = "", 0, 0
        self._keys, self._written = DigestTable(), 0
        self.shards: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        elif self._open_shard is not None:
            self._open_shard.discard()

    def add(self, sample: Sample) -> dict[str, MemberRef]:
        """Append a sample; returns where each member stands.

        Raises ValueError for a key seen before or for members other than the three of the index,
        InfrastructureError when the disk refuses.
        """
        if set(sample.members) != set(MEMBERS):
            raise ValueError(f"sample {sample.key} has members {sorted(sample.members)}, not {sorted(MEMBERS)}")
        digest = hashlib.blake2b(sample.key.encode(), digest_size=DIGEST_BYTES).digest()
        if self._keys.add(digest, self._written) is not None:
            raise ValueError(f"sample {sample.key} stands twice in one dataset")
        self._written += 1
        with storage_faults(str(self._directory)):
            if self._is_full(sample):
                self._close()
            shard = self._open_shard or self._open(sample.group)
            self._held += 1
            self._used += _tar_bytes(sample)
            return {name: shard.append(member_name(sample.key, name), sample.members[name]) for name in MEMBERS}

    def _is_full(self, sample: Sample) -> bool:
        return self._held > 0 and (
            self._group != sample.group
            or self._held >= self._samples
            or self._used + _tar_bytes(sample) + 2 * _BLOCK > self._size_bytes
        )

    def _open(self, group: str) -> _OpenShard:
        self.shards.append(shard_name(self._first + len(self.shards)))
        self._open_shard = _OpenShard(self._directory / self.shards[-1])
        self._group, self._held, self._used = group, 0, 0
        return self._open_shard

    def _close(self) -> None:
        if self._open_shard is not None:
            with storage_faults(str(self._directory)):
                self._open_shard.close()
            self._open_shard, self._held = None, 0


class _OpenShard:
    """One tar that is being written beside its place."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, temporary_beside(path)
        self._stream = self._temporary.open("wb")
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def append(self, name: str, data: bytes) -> MemberRef:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), _MODE, 0
        start = self._tar.offset + _BLOCK
        self._tar.addfile(info, io.BytesIO(data))
        return MemberRef(self._path.name, start, len(data), digest_bytes(data))

    def close(self) -> None:
        try:
            self._tar.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._temporary.replace(self._path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        # What the stream still holds has nowhere to go on a full disk; the file goes anyway.
        with contextlib.suppress(OSError):
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


def verify_shards(directory: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Read every member of every index row by seeking, and every tar from its start; both must agree. `rows` come shard
    by shard, as they were written, so that one shard's are in memory.

    Raises DataIntegrityError naming the first difference.
    """
    indexed = set()
    for shard, own in groupby(rows, key=lambda row: str(row["shard"])):
        _verify_shard(directory, shard, own)
        indexed.add(shard)
    present = {p.name for p in directory.glob("*.tar")}
    if present != indexed:
        raise DataIntegrityError("shards and index differ", value=sorted(present ^ indexed)[0], where=str(directory))


def _verify_shard(directory: Path, shard: str, rows: Iterable[Mapping[str, object]]) -> None:
    members: dict[str, tuple[int, int]] = {}
    for row in rows:
        for name in MEMBERS:
            reference = member(dict(row), name)
            read_member(directory, reference)
            members[member_name(str(row["sample_id"]), name)] = reference.offset, reference.size_bytes
    if members != {i.name: (i.offset_data, i.size) for i in _headers(directory / shard)}:
        raise DataIntegrityError("tar headers and index differ", value=shard, where=str(directory))


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield from tar
    except tarfile.TarError as error:
        raise DataIntegrityError(f"shard is no tar file: {error}", value=path.name) from None
