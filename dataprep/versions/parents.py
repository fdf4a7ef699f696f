"""The datasets a version is made of: read, held against each other, and joined into one table of samples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.encode.dataset import DATASET
from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX, MEMBERS, RUN_ROWS, SCHEMA, index_rows

PARENT, ROW = "parent", "row"  # columns: number of the dataset that a row is of, and its place in that index
# What is kept in memory of the samples of a version; the rest of an index is read in batches, ten million rows of it
# are 7 GB.
_TEXTS = ("source", "media", "shard")  # few different ones, so that numbers stand for them
_COLUMNS = (*_TEXTS, "bucket_t", "bucket_h", "bucket_w", "tokens", "captions")
EXAMPLES = 10
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Parent:
    """A dataset artifact with its facts and its number of samples."""

    artifact: Artifact
    facts: dict[str, Any]
    rows: int

    @classmethod
    def read(cls, artifact: Artifact) -> Parent:
        """Raises DataIntegrityError when facts or index do not parse."""
        try:
            facts = json.loads(artifact.path(DATASET).read_bytes())
        except ValueError as error:
            raise DataIntegrityError(f"{DATASET} does not parse: {error}", value=artifact.id) from None
        return cls(artifact, facts, index_rows(artifact.path(INDEX)))

    def batches(self, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
        """The index in its order, in pieces."""
        for batch in pq.ParquetFile(self.artifact.path(INDEX), pre_buffer=False).iter_batches(
            RUN_ROWS, columns=None if columns is None else list(columns)
        ):
            yield pa.Table.from_batches([batch])

    def shards(self) -> dict[str, int]:
        """Samples by shard."""
        held: Counter[str] = Counter()
        for batch in self.batches(["shard"]):
            for found in pc.value_counts(batch["shard"]).to_pylist():
                held[found["values"]] += found["counts"]
        return dict(held)


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


def samples_of(parents: Sequence[Parent], kept: Sequence[Mask]) -> pa.Table:
    """What is kept in memory of the samples that stay, of all parents in order, with their `parent` and `row`. `kept`:
    which rows of each parent."""
    places = pa.schema([(PARENT, pa.int32()), (ROW, pa.int64())])
    parts = [_numbered(pa.schema([*(SCHEMA.field(name) for name in _COLUMNS), *places]).empty_table())]
    for number, (parent, mask) in enumerate(zip(parents, kept, strict=True)):
        start = 0
        for batch in parent.batches(_COLUMNS):
            here = mask[start : start + len(batch)]
            rows = np.flatnonzero(here) + start
            start += len(batch)
            part = batch.select(_COLUMNS).filter(pa.array(here))
            part = part.append_column(PARENT, pa.array(np.full(len(rows), number, np.int32)))
            parts.append(_numbered(part.append_column(ROW, pa.array(rows))))
    return pa.concat_tables(parts).unify_dictionaries()


def _numbered(table: pa.Table) -> pa.Table:
    for name in _TEXTS:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
    return table


def without_repeats(parents: Sequence[Parent]) -> list[Mask]:
    """Which rows of each parent stand for their sample: of a sample that several hold, the first.

    Raises InputError when a sample has different bytes in two datasets.
    """
    keys = np.concatenate([np.zeros(0, np.uint64), *(_keys(b["sample_id"]) for p in parents for b in p.batches(_ID))])
    keep = np.ones(len(keys), dtype=np.bool_)
    ordered = np.sort(keys)
    suspects = np.flatnonzero(np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]]))
    if len(suspects):
        groups = _named(parents, suspects).group_by("sample_id", use_threads=False)
        firsts = groups.aggregate([("place", "min"), ("place", "count")])
        repeated = firsts.filter(pc.greater(firsts["place_count"], 1))["sample_id"].combine_chunks()
        if len(repeated):
            _check_equal(parents, repeated)
        keep[suspects] = False
        keep[firsts["place_min"].to_numpy()] = True
    return np.split(keep, np.cumsum([parent.rows for parent in parents])[:-1])


_ID = ("sample_id",)


def _keys(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each id: rows that share them may be one sample, all others are not."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _named(parents: Sequence[Parent], places: NDArray[np.int64]) -> pa.Table:
    """`sample_id` and `place` of some rows; places count through all parents."""
    parts, start = [], 0
    for batch in (batch for parent in parents for batch in parent.batches(_ID)):
        first, last = np.searchsorted(places, [start, start + len(batch)])
        own = places[first:last]
        parts.append(batch.take(pa.array(own - start)).append_column("place", pa.array(own)))
        start += len(batch)
    return pa.concat_tables(parts)


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
