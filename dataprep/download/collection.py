"""The download that comes before a listing: what the tables of a collection name by URL and is not there is fetched
into the collection, and what could not be fetched stands in the listing with its reason.

A collection is mutable, so this changes no identity: the source stage lists what is there afterwards, as ever. Its
probe also covers what failed (`state_digest`), so the next plan sees that the collection has changed; the listing
made then is the same artifact and nothing behind it runs again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from dataprep.download.outcome import WantedFile
from dataprep.download.run import Report, download
from dataprep.download.state import DownloadState
from dataprep.sources.adapter import Adapter, ScanContext
from dataprep.sources.config_base import Tables
from dataprep.sources.digests import NoDigests
from dataprep.sources.listing import Count, Entry, ListedFile, Rejected
from m4v.core.storage import Storage


class Tell(Protocol):
    """Hears how far it is: done of total (None: not known) units, with a line about it. May raise to stop."""

    def __call__(self, done: float, total: float | None, unit: str, note: str) -> None: ...


def fetch_missing(
    adapter: Adapter[Tables], config: Tables, location: Storage, state: DownloadState, *, seed: int, tell: Tell,
    again: bool = False,
) -> Report:  # fmt: skip
    """Fetch until nothing is wanted that was not tried; `again` also tries what failed for good before. With a
    `limit`, only as many files as the listing will take: rows that failed for good are made up for by later ones.

    Raises InfrastructureError (most servers cannot be reached, the disk is full); what `tell` raises.
    """
    settings = config.download
    assert settings is not None
    total = Report()
    while True:
        with NoDigests() as digests:
            context = ScanContext(
                digests, None, lambda done, total: tell(done, total, "rows", "looking for files to download")
            )
            wanted = _wanted(adapter.entries(config, location, context), config.limit, None if again else state)
            report = download(
                settings, wanted, state, seed=seed, again=again,
                tick=lambda r: tell(r.done, r.wanted, "downloads", r.words()),
            )  # fmt: skip
        total.add(report)
        if config.limit is None or sum(report.failed.values()) == report.unreachable:
            return total
        again = False


def _wanted(entries: Iterable[Entry], limit: int | None, state: DownloadState | None) -> Iterator[WantedFile]:
    usable = 0
    for entry in entries:
        if isinstance(entry, ListedFile):
            usable += 1
        elif isinstance(entry, Rejected) and entry.wanted is not None:
            file = WantedFile(entry.path, entry.wanted.url, entry.wanted.media, entry.wanted.claims)
            usable += state is None or not state.has_failed(file)
            yield file
        if limit is not None and usable >= limit:
            return


def with_failures(entries: Iterable[Entry], limit: int | None, state: DownloadState) -> Iterator[Entry]:
    """Entries of a listing made after the download: a missing file has the reason why it could not be fetched, and
    those that lie past the limit are no rejections."""
    listed = 0
    for entry in entries:
        listed += isinstance(entry, ListedFile)
        if isinstance(entry, Rejected) and entry.wanted is not None:
            if limit is not None and listed >= limit:
                yield Count("over_limit")
                continue
            if (failure := state.failure(entry.path)) is not None:
                detail = f"{entry.detail}: {failure.detail}" if failure.detail else entry.detail
                entry = entry._replace(reason=failure.reason, detail=detail)
        yield entry
