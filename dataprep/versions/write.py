"""Writing a version: which shards are shared, what is packed anew, and an index that names the new places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprep.encode_config import ShardConfig
from dataprep.shards import SHARDS, Sample, ShardWriter, shard_name, verify_shards
from dataprep.versions.parents import PARENT, ROW, Parent
from m4v.core.shard_index import INDEX, MEMBERS, SCHEMA, IndexWriter, iterate, member
from m4v.core.shard_reader import ShardReader


@dataclass(frozen=True)
class SharedShard:
    """A shard that the version has in common with a parent."""

    name: str
    parent: int
    source: str
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """`untouched` samples (their `parent` and `row`) stay where they are, in `shared` shards; `moved` are written."""

    shared: list[SharedShard]
    untouched: pa.Table
    moved: pa.Table


def plan(parents: Sequence[Parent], kept: pa.Table) -> Plan:
    """A shard is shared when every sample of it is kept."""
    held = _counts(kept)
    shared: list[SharedShard] = []
    for number, parent in enumerate(parents):
        for source, samples in sorted(parent.shards().items()):
            if held.get((number, source)) == samples:
                size = parent.artifact.manifest.entry(f"{SHARDS}/{source}").size_bytes
                shared.append(SharedShard(shard_name(len(shared)), number, source, size))
    places = {(s.parent, s.source) for s in shared}
    stay = [_stays(batch, places) for batch in kept.select([PARENT, "shard"]).to_batches()]
    stays = pa.chunked_array(stay, pa.bool_())
    rows = kept.select([PARENT, ROW])
    return Plan(shared, rows.filter(stays), rows.filter(pc.invert(stays)))


def _stays(rows: pa.RecordBatch, places: set[tuple[int, str]]) -> pa.Array:
    """Whether the shard of each row, all of one parent, is among the (parent, shard)."""
    shards = rows["shard"].dictionary.to_pylist()
    parent = rows[PARENT][0].as_py() if len(rows) else 0
    shared = np.array([(parent, shard) in places for shard in shards], dtype=np.bool_)
    return pa.array(shared[rows["shard"].indices.to_numpy()])


def _counts(table: pa.Table) -> dict[tuple[int, str], int]:
    """Samples by (parent, shard)."""
    groups = table.group_by([PARENT, "shard"], use_threads=False).aggregate([([], "count_all")])
    columns = (groups[name].to_pylist() for name in (PARENT, "shard", "count_all"))
    return {(number, shard): count for number, shard, count in zip(*columns, strict=True)}


def _replace(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def write_shards(
    directory: Path, parents: Sequence[Parent], plan: Plan, config: ShardConfig, tick: Callable[[int], None]
) -> list[str]:
    """Write the moved samples into new shards, read them back, and write the index of all; returns their names.

    Every byte that is moved is checked; raises DataIntegrityError when a parent's shard is damaged.
    """
    with IndexWriter(directory / INDEX) as index:
        moved = [SCHEMA.append(pa.field(PARENT, pa.int32())).empty_table()]
        for number, parent in enumerate(parents):
            stay, move = (_mask(rows, number, parent.rows) for rows in (plan.untouched, plan.moved))
            shared = [s for s in plan.shared if s.parent == number]
            start = 0
            for batch in parent.batches():
                here = slice(start, start := start + len(batch))
                index.add_table(_renamed(batch.filter(pa.array(stay[here])), shared))
                part = batch.filter(pa.array(move[here]))
                moved.append(part.append_column(PARENT, pa.array(np.full(len(part), number, np.int32))))
        order = [(name, "ascending") for name in ("bucket_t", "bucket_h", "bucket_w", "sample_id")]
        rows, shards = _write_moved(directory, parents, pa.concat_tables(moved).sort_by(order), plan, config, tick)
        verify_shards(directory / SHARDS, iterate(rows))
        index.add_table(rows)
    return shards


def _mask(rows: pa.Table, parent: int, length: int) -> NDArray[np.bool_]:
    """Which rows of a parent's index stand in a table."""
    mask = np.zeros(length, bool)
    mask[rows.filter(pc.equal(rows[PARENT], parent))[ROW].to_numpy()] = True
    return mask


def _renamed(rows: pa.Table, shared: Sequence[SharedShard]) -> pa.Table:
    before, after = (pa.array([getattr(s, name) for s in shared], pa.string()) for name in ("source", "name"))
    return _replace(rows, {"shard": after.take(pc.index_in(rows["shard"].combine_chunks(), value_set=before))})


def _write_moved(
    directory: Path, parents: Sequence[Parent], moved: pa.Table, plan: Plan, config: ShardConfig,
    tick: Callable[[int], None],
) -> tuple[pa.Table, list[str]]:  # fmt: skip
    """Write rows in their order; returns them with their new places, and the names of the shards."""
    readers = [ShardReader(lambda name, p=p: p.artifact.path(f"{SHARDS}/{name}")) for p in parents]  # type: ignore[misc]
    columns: dict[str, list[object]] = {"shard": [], **{f"{name}_offset": [] for name in MEMBERS}}
    with ShardWriter(
        directory / SHARDS, samples=config.samples, size_bytes=config.size_bytes, first=len(plan.shared)
    ) as writer:
        for number, row in enumerate(iterate(moved)):
            members = {name: readers[int(str(row[PARENT]))].read(member(row, name)) for name in MEMBERS}
            placed = writer.add(Sample(str(row["sample_id"]), _bucket(row), members))
            columns["shard"].append(placed["latent"].shard)
            for name in MEMBERS:
                columns[f"{name}_offset"].append(placed[name].offset)
            tick(number + 1)
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    return _replace(moved, arrays), writer.shards


def _bucket(row: dict[str, object]) -> str:
    return f"{row['bucket_t']}x{row['bucket_h']}x{row['bucket_w']}"
