"""What stands beside the shards of a version: `dataset.json`, removed samples, reconstructions, quarantine."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.encode.dataset import NULL_TEXT, RECONSTRUCTIONS, write_facts
from dataprep.quarantine import QUARANTINE, QuarantineRow, read_quarantine, write_quarantine
from dataprep.versions.config import MixtureWeight, Remove, Subset, VersionConfig
from dataprep.versions.parents import Mask, Parent
from dataprep.versions.select import REASON, REASONS
from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext

REMOVED = "removed.parquet"
_REMOVED_COLUMNS = ("clip_id", "sample_id", "source", "source_id", "start_us", "end_us", REASON)
_LONGEST_LIST = 20  # of names that are told in full


def dataset_facts(parents: Sequence[Parent], kept: pa.Table, shards: int, quarantined: int) -> dict[str, object]:
    """Content of `dataset.json` as encode writes it, counted from the index."""
    facts = {name: parents[0].facts[name] for name in ("schema_version", "codec", "text_encoder", "encoder_digest")}
    return facts | {
        "fps": parents[0].facts["fps"],
        "buckets": _buckets(parents, kept),
        "samples": len(kept),
        "videos": _count(kept, "video"),
        "images": _count(kept, "image"),
        "captions": pc.sum(kept["captions"]).as_py() or 0,
        "tokens": pc.sum(kept["tokens"]).as_py() or 0,
        "sources": dict(sorted((v["values"], v["counts"]) for v in pc.value_counts(kept["source"]).to_pylist())),
        "shards": shards,
        "quarantined": quarantined,
    }


def _count(kept: pa.Table, media: str) -> int:
    return int(pc.sum(pc.equal(kept["media"], media)).as_py() or 0)


def _buckets(parents: Sequence[Parent], kept: pa.Table) -> list[dict[str, object]]:
    """Buckets with at least one sample; their sizes in pixels are the parents' to know."""
    known = {(b["media"], *b["latent"]): b for parent in parents for b in parent.facts["buckets"]}
    keys = ["media", "bucket_t", "bucket_h", "bucket_w"]
    groups = kept.group_by(keys, use_threads=False).aggregate([([], "count_all")]).to_pylist()
    found = [{**known[tuple(g[k] for k in keys)], "samples": g["count_all"]} for g in groups]
    return sorted(found, key=lambda b: (b["media"], b["frames"], b["height"], b["width"]))


def operation_facts(config: VersionConfig) -> dict[str, object]:
    """The operation for people: long lists as their count, and the digest of everything."""
    told: dict[str, object] = {}
    for name, value in config.operation.canonical().items():
        is_long = isinstance(value, list) and len(value) > _LONGEST_LIST
        told[name] = f"{len(value)} names" if is_long and isinstance(value, list) else value
    return {**told, "digest": digest_json(config.operation.canonical())}


def check_mixture(mixture: Sequence[MixtureWeight], kept: pa.Table) -> None:
    """Raises ConfigError when an entry finds no source."""
    sources = sorted(pc.unique(kept["source"]).to_pylist())
    for entry in mixture:
        if not any(fnmatch.fnmatchcase(s, glob) for s in sources for glob in entry.sources):
            raise ConfigError(
                f"mixture entry {entry.name!r} matches no source of the version", value=list(entry.sources),
                next_step=f"its sources are {', '.join(sources)}",
            )  # fmt: skip


def write_removed(path: Path, parent: Parent, reasons: NDArray[np.int8]) -> None:
    """Rows that `remove` took out of a dataset, by clip; same rows, same bytes. `reasons`: places in `REASONS`."""
    parts, start = [], 0
    for batch in parent.batches(_REMOVED_COLUMNS[:-1]):
        here = reasons[start : start + len(batch)]
        start += len(batch)
        told = pa.array(np.array(REASONS, object)[here[here > 0]], pa.string())
        parts.append(batch.filter(pa.array(here > 0)).append_column(REASON, told))
    gone = pa.concat_tables(parts).select(_REMOVED_COLUMNS)
    ordered = gone.sort_by([("clip_id", "ascending"), ("sample_id", "ascending")])
    pq.write_table(ordered.combine_chunks(), path, compression="zstd")


def bring_quarantine(path: Path, parents: Sequence[Parent], config: VersionConfig) -> int:
    """The parents' quarantined clips, without those of removed sources; returns how many."""
    gone = set(config.operation.sources) if isinstance(config.operation, Remove) else set()
    rows: set[QuarantineRow] = set()
    for parent in parents:
        if QUARANTINE in parent.artifact.names():
            rows.update(r for r in read_quarantine(parent.artifact.path(QUARANTINE)) if r.source not in gone)
    write_quarantine(path, rows)
    return len(rows)


def bring_reconstructions(context: StageContext, out: Path, parents: Sequence[Parent], kept: Sequence[Mask]) -> None:
    """Reconstructions of clips that stay; their videos are shared. `kept`: which rows of each parent."""
    listing = f"{RECONSTRUCTIONS}.json"
    shown: dict[str, dict[str, Any]] = {}
    report: dict[str, Any] = {}
    for parent in parents:
        if listing not in parent.artifact.names():
            continue
        found = json.loads(parent.artifact.path(listing).read_bytes())
        report = report or found
        stay = _staying(parents, kept, [clip["clip_id"] for clip in found["clips"]])
        for clip in found["clips"]:
            if clip["clip_id"] in stay and clip["clip_id"] not in shown:
                shown[clip["clip_id"]] = clip
                context.share("dataset", clip["file"], parent.artifact, clip["file"])
    if report:
        write_facts(out / listing, {**report, "clips": list(shown.values())})


def _staying(parents: Sequence[Parent], kept: Sequence[Mask], clips: Sequence[str]) -> set[str]:
    """Those of some clips that have a sample which stays."""
    asked, found = pa.array(clips, pa.string()), set[str]()
    for parent, mask in zip(parents, kept, strict=True):
        start = 0
        for batch in parent.batches(["clip_id"]):
            here = pa.array(mask[start : start + len(batch)])
            start += len(batch)
            found.update(batch["clip_id"].filter(pc.and_(here, pc.is_in(batch["clip_id"], asked))).to_pylist())
    return found


def share_null_text(context: StageContext, parents: Sequence[Parent]) -> None:
    """Features of the empty prompt: equal wherever the encoders are."""
    context.share("dataset", NULL_TEXT, parents[0].artifact, NULL_TEXT)


def is_selection(config: VersionConfig) -> bool:
    """Whether the operation takes one dataset."""
    return isinstance(config.operation, Subset | Remove)
