"""Reading members of shards straight from their place, without the tar format in between."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import MemberRef


class ShardReader:
    """Members of shards by their place, through one memory map a shard. `path_of` gives a shard's local file;
    `check` holds every member that is read against its digest."""

    def __init__(self, path_of: Callable[[str], Path], *, check: bool = True) -> None:
        self._path_of, self._check = path_of, check
        self._maps: dict[str, mmap.mmap] = {}

    def read(self, reference: MemberRef, name: str | None = None) -> bytes:
        """Raises DataIntegrityError, which calls the member `name`, when the bytes are not what the index says."""
        shard = self._maps.get(reference.shard) or self._map(reference.shard)
        data = shard[reference.offset : reference.offset + reference.size_bytes]
        if len(data) != reference.size_bytes or (self._check and digest_bytes(data) != reference.sha256):
            raise DataIntegrityError(
                "shard member differs from the index",
                value=name or reference.offset,
                where=reference.shard,
                next_step="m4v artifacts verify --repair",
            )
        return data

    def _map(self, name: str) -> mmap.mmap:
        with self._path_of(name).open("rb") as stream:
            self._maps[name] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]
