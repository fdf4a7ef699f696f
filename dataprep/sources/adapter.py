"""What every source adapter is: a stream of entries, and a cheap digest of the same for the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import Entry
from m4v.core.items import ItemStore
from m4v.core.storage import Storage

ConfigT = TypeVar("ConfigT", contravariant=True)


@dataclass(frozen=True)
class ScanContext:
    """Helpers of one scan. `tick(done, total)` reports progress and may raise to stop the scan. `workers`: threads that
    a collection may be drawn with."""

    digests: DigestCache
    items: ItemStore | None = None
    tick: Callable[[int, int | None], None] = lambda done, total: None
    workers: int = 1


class Adapter(Protocol[ConfigT]):
    """One kind of collection.

    `entries` streams files and rejections in a fixed order; for a generated collection it writes the media
    below the location first. `probe` is a digest that changes whenever `entries` would, read at plan time;
    both raise InputError when the collection as a whole cannot be used.
    """

    inside: bool  # media lie inside the artifact

    def entries(self, config: ConfigT, location: Storage, context: ScanContext) -> Iterator[Entry]: ...

    def probe(self, config: ConfigT, location: Storage | None, digests: DigestCache) -> str: ...
