"""Index of a dataset version: `index.parquet`, one row a sample, sorted by (clip_id, sample_id).

A reader seeks straight to a member of a tar: `offset` and `size_bytes` are of the member's data, not of
its header. `bucket_*` are latent frames, height and width; `tokens` counts 2x2 latent patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError

INDEX = "index.parquet"
MEMBERS = ("latent", "text", "meta")
MEMBER_SUFFIX = {"latent": "latent.safetensors", "text": "text.safetensors", "meta": "json"}
PATCH_AREA = 4
_MEMBER_FIELDS = (("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string()))

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
        ("source", pa.string()),  # name of the source entry in the recipe
        ("source_id", pa.string()),
        ("source_digest", pa.string()),
        ("start_us", pa.int64()),
        ("end_us", pa.int64()),
        ("phash", pa.string()),
        ("media", pa.string()),  # video | image
        ("shard", pa.string()),
        *[(f"{member}_{field}", kind) for member in MEMBERS for field, kind in _MEMBER_FIELDS],
        ("bucket_t", pa.int32()),
        ("bucket_h", pa.int32()),
        ("bucket_w", pa.int32()),
        ("tokens", pa.int64()),
        ("captions", pa.int32()),
        ("caption_digest", pa.string()),
        ("licence", pa.string()),
    ]
)  # fmt: skip


class MemberRef(NamedTuple):
    shard: str
    offset: int
    size_bytes: int
    sha256: str


def write_index(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows sorted by (clip_id, sample_id); same rows, same bytes."""
    ordered = sorted(rows, key=lambda r: (str(r["clip_id"]), str(r["sample_id"])))
    _write(path, pa.Table.from_pylist(ordered, schema=SCHEMA))


def write_index_table(path: Path, table: pa.Table) -> None:
    """`write_index` for rows that stand in a table of the schema, in any order; the same rows give the same bytes."""
    ordered = table.sort_by([("clip_id", "ascending"), ("sample_id", "ascending")])
    _write(path, ordered.select(SCHEMA.names).cast(SCHEMA).combine_chunks())


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd", row_group_size=65_536)


def read_index(path: Path) -> pa.Table:
    """Raises DataIntegrityError when the file is no Parquet or the columns are not the schema's."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataIntegrityError(f"shard index does not parse: {error}", where=str(path)) from None
    if table.schema.names != SCHEMA.names:
        raise DataIntegrityError("shard index has other columns", value=table.schema.names, where=str(path))
    return table


def member(row: dict[str, object], name: str) -> MemberRef:
    return MemberRef(
        str(row["shard"]), int(str(row[f"{name}_offset"])), int(str(row[f"{name}_size"])), str(row[f"{name}_sha256"])
    )


def read_member(shards: Path, reference: MemberRef) -> bytes:
    """Bytes of one member, checked; raises DataIntegrityError when they differ."""
    with (shards / reference.shard).open("rb") as stream:
        stream.seek(reference.offset)
        data = stream.read(reference.size_bytes)
    if digest_bytes(data) != reference.sha256:
        raise DataIntegrityError(
            "shard member differs from the index", value=reference.shard, next_step="m4v artifacts verify"
        )
    return data


def iterate(table: pa.Table) -> Iterator[dict[str, object]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()
