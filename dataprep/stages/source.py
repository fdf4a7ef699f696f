"""Stage `source`: list a collection into an artifact (`dataprep.sources.listing` gives the layout), after fetching
what its tables name by URL where the recipe says `download`."""

from __future__ import annotations

import contextlib
from typing import Any

from dataprep.download.collection import fetch_missing, with_failures
from dataprep.download.state import DownloadState
from dataprep.sources import adapter_of
from dataprep.sources.adapter import Adapter, ScanContext
from dataprep.sources.config import SourceConfig
from dataprep.sources.config_base import Tables
from dataprep.sources.digests import DigestCache, cache_file
from dataprep.sources.listing import ListingWriter, SourceFacts, write_facts
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.core.storage import Storage

MIN_ROWS_FOR_RATE = 20  # in a handful of files one bad file is no rate


def run(context: StageContext) -> None:
    """Raises InputError when nothing usable is there, DataIntegrityError past the allowed share of rejections,
    InfrastructureError when too much of what is to be downloaded cannot be reached."""
    config = context.config(SourceConfig)
    adapter = adapter_of(config.adapter)
    out = context.output("source")

    def tick(done: int, total: int | None) -> None:
        context.progress.update(done, total, "files")
        context.check_drain()

    location = Storage(str(out)) if adapter.inside else context.location(config.name)
    items = ItemStore(context.items("source-media", digest_json(config.adapter.kind))) if adapter.inside else None
    with contextlib.ExitStack() as stack:
        state = _fetch(context, config, adapter, location, stack)
        digests, writer = stack.enter_context(DigestCache()), stack.enter_context(ListingWriter(out))
        entries = adapter.entries(
            config.adapter, location, ScanContext(digests, items, tick, context.resources.workers)
        )
        if state is not None:
            entries = with_failures(entries, getattr(config.adapter, "limit", None), state)
        for entry in entries:
            writer.add(entry)
    counts = dict(sorted(writer.counts.items()))
    _check(config, counts)
    facts = SourceFacts(
        name=config.name,
        kind=config.adapter.kind,
        licence=config.adapter.licence,
        terms=config.adapter.terms,
        media="inside" if adapter.inside else "external",
        identity=getattr(config.adapter, "identity", "full"),
        counts=counts,
    )
    write_facts(out, facts)
    context.summary("source", {"name": config.name, "kind": config.adapter.kind, **counts})
    context.metrics({"digests_cached": digests.hits, "digests_computed": digests.misses})


def _fetch(
    context: StageContext, config: SourceConfig, adapter: Adapter[Any], location: Storage, stack: contextlib.ExitStack
) -> DownloadState | None:
    """The state of the download that went before the listing, open; None for a collection without one."""
    if not isinstance(config.adapter, Tables) or config.adapter.download is None:
        return None
    state = stack.enter_context(DownloadState(location, cache_file().parent))

    def tell(done: float, total: float | None, unit: str, note: str) -> None:
        context.progress.update(done, total, unit, note)
        context.check_drain()

    report = fetch_missing(adapter, config.adapter, location, state, seed=context.seed, tell=tell)
    context.metrics({f"download_{name}": value for name, value in report.figures().items()})
    return state


def _check(config: SourceConfig, counts: dict[str, int]) -> None:
    files, rejected = counts.get("files", 0), counts.get("rejected", 0)
    reasons = ", ".join(f"{n} {k.removeprefix('rejected_')}" for k, n in counts.items() if k.startswith("rejected_"))
    if files == 0:
        raise InputError(
            f"source has no usable file ({reasons or 'nothing of its kind found'})", value=config.name,
            next_step="look at its location, `include` and captions",
        )  # fmt: skip
    share = rejected / (files + rejected)
    if files + rejected >= MIN_ROWS_FOR_RATE and share > config.adapter.max_rejected:
        raise DataIntegrityError(
            f"{rejected} of {files + rejected} rows were rejected ({reasons}), more than max_rejected allows",
            value=round(share, 3), where=f"source {config.name}",
            next_step=f"mend the collection or raise sources.{config.name}.adapter.max_rejected",
        )  # fmt: skip
