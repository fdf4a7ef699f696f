"""Source adapters: collections of videos and images, listed row by row, nothing dropped in silence.

`scan` lists a collection in memory, `probe` gives the digest a plan needs; the `source` stage streams the
same entries into an artifact. Neither needs torch. `dataprep.sources.sniff` says which kinds a location may hold,
`dataprep.sources.report` what a scan would give before a byte of media is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataprep.sources.adapter import Adapter, ScanContext
from dataprep.sources.config import AdapterConfig, SourceConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import Entry, SourceListing
from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError, InputError
from m4v.core.storage import Storage


def adapter_of(config: AdapterConfig) -> Adapter[Any]:
    """The adapter of a config's `kind`. Imports wait (only `synthetic` loads a video encoder) and are written
    out: a stage's key covers the code that it imports."""
    match config.kind:
        case "folder" | "images":
            from dataprep.sources.tree import TreeAdapter

            return TreeAdapter("video" if config.kind == "folder" else "image")
        case "openvid":
            from dataprep.sources.openvid import OpenVidAdapter

            return OpenVidAdapter()
        case "webvid":
            from dataprep.sources.webvid import WebVidAdapter

            return WebVidAdapter()
        case "opensora_plan":
            from dataprep.sources.opensora_plan import OpenSoraPlanAdapter

            return OpenSoraPlanAdapter()
        case "webdataset":
            from dataprep.sources.webdataset import WebDatasetAdapter

            return WebDatasetAdapter()
        case "pyramidflow":
            from dataprep.sources.pyramidflow import PyramidFlowAdapter

            return PyramidFlowAdapter()
        case "generated":
            from dataprep.sources.generated import GeneratedAdapter

            return GeneratedAdapter()
        case "laion":
            from dataprep.sources.laion import LaionAdapter

            return LaionAdapter()
        case "synthetic":
            from dataprep.sources.synthetic import SyntheticAdapter

            return SyntheticAdapter()


def entries(config: AdapterConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
    return adapter_of(config).entries(config, location, context)


def scan(config: AdapterConfig, location: Storage) -> SourceListing:
    """The whole listing in memory; a generated collection is written below `location` first."""
    with DigestCache() as digests:
        return SourceListing.of(entries(config, location, ScanContext(digests)))


def probe(config: SourceConfig, locations: Mapping[str, str]) -> str:
    """Digest of what the collection holds now: what makes a plan see that a folder has changed.

    Raises InputError when the collection is not there.
    """
    adapter = adapter_of(config.adapter)
    if not adapter.inside and config.name not in locations:
        raise ConfigError(
            "source has no location", value=config.name, where="recipe sources",
            next_step=f"--set sources.{config.name}.location=DIRECTORY",
        )  # fmt: skip
    location = None if adapter.inside else Storage(locations[config.name])
    with DigestCache() as digests:
        try:
            return digest_json([config.adapter.kind, adapter.probe(config.adapter, location, digests)])
        except InputError as error:
            step = (error.next_step or "").replace("sources.NAME", f"sources.{config.name}")
            where = f"source {config.name}" + (f", {error.where}" if error.where else "")
            raise InputError(error.what, value=error.value, where=where, next_step=step or None) from None


__all__ = ["Adapter", "ScanContext", "SourceConfig", "adapter_of", "entries", "probe", "scan"]
