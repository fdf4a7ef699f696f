"""The datasets a version is made of: read, held against each other, and joined into one table of samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprep.encode.dataset import DATASET
from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX, MEMBERS, RUN_ROWS, read_index

PARENT, ROW = "parent", "row"  # columns: number of the dataset that a row is of, and its place in that index
# What decides which samples stay; the rest of an index is read in batches, ten million rows of it are 7 GB.
COLUMNS = (
    "sample_id", "clip_id", "source", "source_id", "start_us", "end_us", "media", "shard", "bucket_t", "bucket_h",
    "bucket_w", "tokens", "captions",
)  # fmt: skip
EXAMPLES = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parent:
    """A dataset artifact, with its facts and the deciding columns of its index in memory."""

    artifact: Artifact
    facts: dict[str, Any]
    index: pa.Table

    @classmethod
    def read(cls, artifact: Artifact, columns: Collection[str] = ()) -> Parent:
        """`columns` are wanted beside `COLUMNS`. Raises DataIntegrityError when facts or index do not parse."""
        try:
            facts = json.loads(artifact.path(DATASET).read_bytes())
        except ValueError as error:
            raise DataIntegrityError(f"{DATASET} does not parse: {error}", value=artifact.id) from None
        return cls(artifact, facts, read_index(artifact.path(INDEX), dict.fromkeys([*COLUMNS, *columns])))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The index in its order, in pieces."""
        for batch in pq.ParquetFile(self.artifact.path(INDEX), pre_buffer=False).iter_batches(
            RUN_ROWS, columns=columns
        ):
            yield pa.Table.from_batches([batch])


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
    """All rows of all parents, in order, with their `parent` and `row`; a sample that several hold stands once, the
    first.

    Raises InputError when a sample has different bytes in two datasets.
    """
    table = pa.concat_tables([_numbered(parent, number) for number, parent in enumerate(parents)])
    if len(parents) == 1:
        return table
    samples = table.select(["sample_id"]).append_column("place", pa.array(np.arange(len(table))))
    groups = samples.group_by("sample_id", use_threads=False).aggregate([("place", "min"), ("place", "count")])
    repeated = groups.filter(pc.greater(groups["place_count"], 1))["sample_id"].combine_chunks()
    if not len(repeated):
        return table
    _check_equal(parents, repeated)
    return table.take(pa.array(np.sort(groups["place_min"].to_numpy())))


def _numbered(parent: Parent, number: int) -> pa.Table:
    rows = len(parent.index)
    table = parent.index.append_column(PARENT, pa.array(np.full(rows, number, np.int32)))
    return table.append_column(ROW, pa.array(np.arange(rows)))


def _check_equal(parents: Sequence[Parent], repeated: pa.Array) -> None:
    """Raises InputError when one of the samples has other members in another dataset."""
    digests = [f"{name}_sha256" for name in MEMBERS]
    found = [
        batch.filter(pc.is_in(batch["sample_id"], value_set=repeated))
        for parent in parents
        for batch in parent.batches(["sample_id", *digests])
    ]
    groups = pa.concat_tables(found).group_by("sample_id", use_threads=False)
    counts = groups.aggregate([(name, "count_distinct") for name in digests])
    differ = np.zeros(len(counts), bool)
    for name in digests:
        differ |= counts[f"{name}_count_distinct"].to_numpy() > 1
    if differ.any():
        names = sorted(counts.filter(pa.array(differ))["sample_id"].to_pylist())
        raise InputError(
            f"{len(names)} samples have different bytes in two datasets", value=names[:EXAMPLES],
            where=", ".join(p.artifact.id[:12] for p in parents), next_step="remove them from one of the two first",
        )  # fmt: skip


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
