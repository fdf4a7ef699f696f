"""The datasets a version is made of: read, held against each other, and joined into one table of samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.encode.dataset import DATASET
from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX, MEMBERS, read_index

PARENT = "parent"  # column: number of the dataset that a row is of
EXAMPLES = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parent:
    """A dataset artifact, with its facts and index in memory."""

    artifact: Artifact
    facts: dict[str, Any]
    index: pa.Table

    @classmethod
    def read(cls, artifact: Artifact) -> Parent:
        """Raises DataIntegrityError when facts or index do not parse."""
        try:
            facts = json.loads(artifact.path(DATASET).read_bytes())
        except ValueError as error:
            raise DataIntegrityError(f"{DATASET} does not parse: {error}", value=artifact.id) from None
        return cls(artifact, facts, read_index(artifact.path(INDEX)))


class Overlap(NamedTuple):
    """Two clips of one source file that share time."""

    source: str
    source_id: str
    first: str
    second: str


def check_encoders(parents: Sequence[Parent]) -> None:
    """Raises InputError when the samples of two datasets mean different things."""
    first = parents[0]
    for other in parents[1:]:
        for part in ("encoder_digest", "fps"):
            if other.facts[part] != first.facts[part]:
                raise InputError(
                    f"datasets of different {'encoders' if part == 'encoder_digest' else part} cannot be one",
                    value=[str(p.facts[part])[:16] for p in (first, other)],
                    where=f"datasets {first.artifact.id[:12]} and {other.artifact.id[:12]}",
                    next_step="encode both with the same codec, text encoder and fps",
                )


def joined(parents: Sequence[Parent]) -> pa.Table:
    """All rows of all parents, in order, with their `parent`; a sample that several hold stands once, the first.

    Raises InputError when a sample has different bytes in two datasets.
    """
    numbered = [p.index.append_column(PARENT, pa.array(np.full(len(p.index), n, np.int32))) for n, p in
                enumerate(parents)]  # fmt: skip
    table = pa.concat_tables(numbered).combine_chunks()
    rows = table.select(["sample_id", *(f"{m}_sha256" for m in MEMBERS)])
    rows = rows.append_column("row", pa.array(np.arange(len(table))))
    digests = [(f"{m}_sha256", "count_distinct") for m in MEMBERS]
    groups = rows.group_by("sample_id", use_threads=False).aggregate([("row", "min"), *digests])
    if len(groups) == len(table):
        return table
    differ = np.zeros(len(groups), bool)
    for name, kind in digests:
        differ |= groups[f"{name}_{kind}"].to_numpy() > 1
    if differ.any():
        found = sorted(groups.filter(pa.array(differ))["sample_id"].to_pylist())
        raise InputError(
            f"{len(found)} samples have different bytes in two datasets", value=found[:EXAMPLES],
            where=", ".join(p.artifact.id[:12] for p in parents), next_step="remove them from one of the two first",
        )  # fmt: skip
    return table.take(pa.array(np.sort(groups["row_min"].to_numpy())))


def overlaps(table: pa.Table) -> list[Overlap]:
    """Clips of one source file whose spans overlap, each with the one it runs into; images have no span."""
    columns = ["source", "source_id", "start_us", "end_us", "clip_id"]
    videos = table.select(columns).filter(pc.greater(table["end_us"], table["start_us"]))
    ordered = videos.sort_by([(name, "ascending") for name in columns])
    found: list[Overlap] = []
    file, reaches, longest = None, 0, ""
    for batch in ordered.to_batches(max_chunksize=65_536):
        for source, source_id, start, end, clip in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            if (source, source_id) != file:
                file, reaches, longest = (source, source_id), 0, ""
            if start < reaches and clip != longest:
                found.append(Overlap(source, source_id, longest, clip))
            if end > reaches:
                reaches, longest = end, clip
    return sorted(set(found))


def repeated_clips(table: pa.Table) -> list[str]:
    """Clips with more than one sample (encoded at several sizes)."""
    counts = table.group_by("clip_id", use_threads=False).aggregate([("sample_id", "count")])
    return sorted(counts.filter(pc.greater(counts["sample_id_count"], 1))["clip_id"].to_pylist())


def warn(found: Sequence[object], what: str) -> dict[str, object]:
    """Log a warning about what training would meet twice; returns what stands in the version's facts."""
    if found:
        _log.warning("%d %s, e.g. %s", len(found), what, found[0])
    shown = [list(one) if isinstance(one, tuple) else one for one in found[:EXAMPLES]]
    return {"count": len(found), "examples": shown}
