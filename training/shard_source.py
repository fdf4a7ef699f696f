"""Members of a dataset's shards wherever it lies: memory-mapped from a local store, and from a remote one through a
local cache of bounded size.

Draws are random over the whole dataset, so a cache that evicts would fetch whole shards for single members. This one
keeps the first shards that fit and evicts none; members of the others are fetched by their range, every time. Which
shards those are follows from sizes alone, so ranks of one machine share the copies without a word.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Protocol

from m4v.core.artifacts import Artifact
from m4v.core.canonical import digest_bytes
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.shard_index import MemberRef
from m4v.core.shard_reader import ShardReader

SHARDS = "shards/"
CACHE_GB = "M4V_SHARD_CACHE_GB"  # of 10^9 bytes; default: half of what the cache's disk could give
_OPEN_SHARDS = 64  # of one thread


class MemberReader(Protocol):
    """Reads members of shards; every byte is held against the index."""

    def read(self, reference: MemberRef, name: str | None = None) -> bytes: ...


class RemoteShards:
    """Members of a remote dataset, through copies of as many shards as `cache_bytes` holds. Safe to use from several
    threads."""

    def __init__(self, dataset: Artifact, cache_bytes: int) -> None:
        self._dataset = dataset
        self.cached = _first_that_fit(dataset, cache_bytes)
        self._fetching = threading.Lock()
        self._copies = ShardReader(self._copy)
        self._open = threading.local()

    def read(self, reference: MemberRef, name: str | None = None) -> bytes:
        """Raises DataIntegrityError, which calls the member `name`, when the bytes are not what the index says."""
        if reference.shard in self.cached:
            return self._copies.read(reference, name)
        stream = self._stream(reference.shard)
        stream.seek(reference.offset)
        data = stream.read(reference.size_bytes)
        if digest_bytes(data) != reference.sha256:
            raise DataIntegrityError(
                "shard member differs from the index", value=name or reference.offset,
                where=f"{self._dataset.storage.uri}/{SHARDS}{reference.shard}",
                next_step="m4v artifacts verify --repair",
            )  # fmt: skip
        return data

    def _copy(self, shard: str) -> Path:
        with self._fetching:  # once, whichever thread needs it first
            return self._dataset.path(SHARDS + shard)

    def _stream(self, shard: str) -> BinaryIO:
        """This thread's reader of a shard; the least recently used are closed."""
        streams: OrderedDict[str, BinaryIO] = self._open.__dict__.setdefault("streams", OrderedDict())
        if shard not in streams:
            streams[shard] = self._dataset.storage.open(SHARDS + shard)
            if len(streams) > _OPEN_SHARDS:
                streams.popitem(last=False)[1].close()
        streams.move_to_end(shard)
        return streams[shard]


def member_reader(dataset: Artifact) -> MemberReader:
    """The reader for where a dataset lies."""
    if dataset.storage.is_local:
        return ShardReader(lambda name: dataset.path(SHARDS + name))
    return RemoteShards(dataset, cache_budget(dataset))


def cache_budget(dataset: Artifact) -> int:
    """Bytes that copies of shards may take: as `M4V_SHARD_CACHE_GB` says, else half of what is free or already
    theirs. Raises ConfigError when the setting is no number."""
    if (setting := os.environ.get(CACHE_GB)) is not None:
        try:
            return int(float(setting) * 1e9)
        except (ValueError, OverflowError):
            raise ConfigError(
                "not a number of gigabytes", value=setting, where=CACHE_GB, next_step="give a number, such as 200"
            ) from None
    cache = Path(dataset.ref.cache)
    cache.mkdir(parents=True, exist_ok=True)
    copies = (cache / dataset.id / SHARDS).glob("*")
    return (shutil.disk_usage(cache).free + sum(copy.stat().st_size for copy in copies if copy.is_file())) // 2


def _first_that_fit(dataset: Artifact, cache_bytes: int) -> frozenset[str]:
    chosen, room = set(), cache_bytes
    for name in sorted(dataset.names(SHARDS)):
        room -= dataset.manifest.entry(name).size_bytes
        if room < 0:
            break
        chosen.add(name.removeprefix(SHARDS))
    return frozenset(chosen)
