"""Index of a dataset version: `index.parquet`, one row a sample, sorted by (clip_id, sample_id).

A reader seeks straight to a member of a tar: `offset` and `size_bytes` are of the member's data, not of
its header. `bucket_*` are latent frames, height and width; `tokens` counts 2x2 latent patches.
"""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Iterable, Iterator
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
GROUP_ROWS = 65_536  # of a Parquet row group
RUN_ROWS = 262_144  # kept in memory by a writer
_MERGED_ROWS = 131_072
_BATCH_ROWS = 2048  # of a run, read together
MEMBER_FIELDS = (("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string()))

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
        *[(f"{member}_{field}", kind) for member in MEMBERS for field, kind in MEMBER_FIELDS],
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


class IndexWriter:
    """Writes `index.parquet` from rows in any order; the same rows give the same bytes. A context manager.

    Rows beyond `RUN_ROWS` lie in sorted runs in a temporary folder until they are merged, so memory does not grow
    with their number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, object]] = []
        self._runs: list[Path] = []
        self._sampled: list[str] = []  # clip ids, one of each batch of a run
        self._folder = tempfile.TemporaryDirectory(prefix="index-runs-")

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._folder.cleanup()

    def add(self, row: dict[str, object]) -> None:
        self._rows.append(row)
        if len(self._rows) == RUN_ROWS:
            self.add_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows = []

    def add_table(self, table: pa.Table) -> None:
        """Many rows at once, in any order."""
        for start in range(0, table.num_rows, RUN_ROWS):
            run = Path(self._folder.name) / f"{len(self._runs):06d}.arrow"
            with pa.OSFile(str(run), "wb") as file, pa.ipc.new_file(file, SCHEMA) as stream:
                ordered = _sorted(table.slice(start, RUN_ROWS))
                stream.write_table(ordered, max_chunksize=_BATCH_ROWS)
            self._sampled += ordered["clip_id"].take(pa.array(range(0, len(ordered), _BATCH_ROWS))).to_pylist()
            self._runs.append(run)

    def _close(self) -> None:
        rest = pa.Table.from_pylist(self._rows, schema=SCHEMA)
        with pq.ParquetWriter(self._path, SCHEMA, compression="zstd") as writer:
            if not self._runs:
                writer.write_table(_sorted(rest), row_group_size=GROUP_ROWS)
                return
            self.add_table(rest)
            bounds = sorted(set(sorted(self._sampled)[:: max(1, _MERGED_ROWS // _BATCH_ROWS)]))
            for part in _merged([*map(_Run, self._runs)], bounds):
                writer.write_table(part, row_group_size=GROUP_ROWS)


class _Run:
    """A sorted run, read from its file batch by batch."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.OSFile(str(path)))
        self._next = 0
        self._rest = SCHEMA.empty_table()

    def take(self, bound: str | None) -> pa.Table:
        """The rows that come next and whose clip id is below `bound`; all with None."""
        parts = [self._rest]
        while self._next < self._file.num_record_batches and (bound is None or not _reaches(parts[-1], bound)):
            parts.append(pa.Table.from_batches([self._file.get_batch(self._next)]))
            self._next += 1
        whole = pa.concat_tables(parts)
        end = whole.num_rows if bound is None else _first_from(whole, bound)
        self._rest = whole.slice(end)
        return whole.slice(0, end)


def _reaches(part: pa.Table, bound: str) -> bool:
    return part.num_rows > 0 and str(part["clip_id"][part.num_rows - 1].as_py()) >= bound


def _sorted(table: pa.Table) -> pa.Table:
    ordered = table.select(SCHEMA.names).cast(SCHEMA).sort_by([("clip_id", "ascending"), ("sample_id", "ascending")])
    return ordered.combine_chunks()


def _merged(runs: list[_Run], bounds: list[str]) -> Iterator[pa.Table]:
    """All rows of sorted runs in order, in tables of a row group."""
    whole = SCHEMA.empty_table()
    for bound in [*bounds, None]:
        whole = pa.concat_tables([whole, _sorted(pa.concat_tables([run.take(bound) for run in runs]))])
        full = whole.num_rows // GROUP_ROWS * GROUP_ROWS
        for start in range(0, full, GROUP_ROWS):
            yield whole.slice(start, GROUP_ROWS).combine_chunks()
        whole = whole.slice(full).combine_chunks()
    if whole.num_rows:
        yield whole


def _first_from(run: pa.Table, clip: str) -> int:
    """First row of a sorted run whose clip id is not below `clip`."""
    ids = run["clip_id"]
    return bisect.bisect_left(range(run.num_rows), clip, key=lambda k: str(ids[k].as_py()))


def write_index(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write rows sorted by (clip_id, sample_id); same rows, same bytes."""
    with IndexWriter(path) as writer:
        for row in rows:
            writer.add(row)


def write_index_table(path: Path, table: pa.Table) -> None:
    """`write_index` for rows that stand in a table of the schema, in any order; the same rows give the same bytes."""
    with IndexWriter(path) as writer:
        writer.add_table(table)


def read_index(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """The index, or some of its columns: all of ten million rows are 7 GB.

    Raises DataIntegrityError when the file is no Parquet or its columns are not the schema's.
    """
    index_rows(path)
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except pa.ArrowInvalid as error:
        raise DataIntegrityError(f"shard index does not parse: {error}", where=str(path)) from None


def index_rows(path: Path) -> int:
    """How many rows an index has; raises DataIntegrityError as `read_index` does, and reads no row."""
    try:
        facts = pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise DataIntegrityError(f"shard index does not parse: {error}", where=str(path)) from None
    names = facts.schema.to_arrow_schema().names
    if names != SCHEMA.names:
        raise DataIntegrityError("shard index has other columns", value=names, where=str(path))
    return int(facts.num_rows)


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
