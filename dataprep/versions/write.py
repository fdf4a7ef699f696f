"""Writing a version: which shards are shared, what is packed anew, and an index that names the new places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.encode_config import ShardConfig
from dataprep.shards import SHARDS, Sample, ShardWriter, shard_name, verify_shards
from dataprep.versions.parents import PARENT, Parent
from m4v.core.shard_index import INDEX, MEMBERS, SCHEMA, MemberRef, iterate, member, write_index_table
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
    """`untouched` rows stay where they are, in `shared` shards; `moved` rows are written, in this order."""

    shared: list[SharedShard]
    untouched: pa.Table
    moved: pa.Table


def plan(parents: Sequence[Parent], kept: pa.Table) -> Plan:
    """A shard is shared when every sample of it is kept."""
    held = _counts(kept)
    shared: list[SharedShard] = []
    for number, parent in enumerate(parents):
        before = parent.index.append_column(PARENT, pa.array(np.full(len(parent.index), number, np.int32)))
        for (_, source), samples in sorted(_counts(before).items()):
            if held.get((number, source)) == samples:
                size = parent.artifact.manifest.entry(f"{SHARDS}/{source}").size_bytes
                shared.append(SharedShard(shard_name(len(shared)), number, source, size))
    places = pa.array([_place(s.parent, s.source) for s in shared], pa.string())
    position = pc.index_in(_places(kept), value_set=places)
    stays = pc.is_valid(position)
    untouched = kept.filter(stays)
    names = pc.take(pa.array([s.name for s in shared], pa.string()), position.drop_null())
    untouched = _replace(untouched, {"shard": names})
    order = [(name, "ascending") for name in ("bucket_t", "bucket_h", "bucket_w", "sample_id")]
    return Plan(shared, untouched, kept.filter(pc.invert(stays)).sort_by(order))


def _place(parent: int, shard: str) -> str:
    return f"{parent}/{shard}"


def _places(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(pc.cast(table[PARENT], pa.string()), table["shard"], "/")


def _counts(table: pa.Table) -> dict[tuple[int, str], int]:
    """Samples by (parent, shard)."""
    groups = table.group_by([PARENT, "shard"], use_threads=False).aggregate([("sample_id", "count")])
    columns = (groups[name].to_pylist() for name in (PARENT, "shard", "sample_id_count"))
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
    readers = [ShardReader(lambda name, p=p: p.artifact.path(f"{SHARDS}/{name}")) for p in parents]  # type: ignore[misc]
    placed: list[dict[str, MemberRef]] = []
    with ShardWriter(
        directory / SHARDS, samples=config.samples, size_bytes=config.size_bytes, first=len(plan.shared)
    ) as writer:
        for row in iterate(plan.moved):
            members = {name: readers[int(str(row[PARENT]))].read(member(row, name)) for name in MEMBERS}
            placed.append(writer.add(Sample(str(row["sample_id"]), _bucket(row), members)))
            tick(len(placed))
    columns = {"shard": pa.array([p["latent"].shard for p in placed], pa.string())}
    columns |= {f"{name}_offset": pa.array([p[name].offset for p in placed], pa.int64()) for name in MEMBERS}
    moved = _replace(plan.moved, columns)
    verify_shards(directory / SHARDS, iterate(moved))
    index = pa.concat_tables([plan.untouched.select(SCHEMA.names), moved.select(SCHEMA.names)])
    write_index_table(directory / INDEX, index)
    return writer.shards


def _bucket(row: dict[str, object]) -> str:
    return f"{row['bucket_t']}x{row['bucket_h']}x{row['bucket_w']}"
