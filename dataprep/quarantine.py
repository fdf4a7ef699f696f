"""The quarantine: items that could not be used, each with its own reason, and the rate past which a stage fails.

A bad item never kills a stage. Work on one item raises `ItemError`; an engine turns it into an `ItemFailure`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.spool import RUN, SortedSpool
from m4v.core.errors import DataIntegrityError

QUARANTINE = "quarantine.parquet"
_DETAIL_CHARACTERS = 500
_GROUP_ROWS = 1 << 20  # of a Parquet row group
_PART_ROWS = 8192


class Reason(StrEnum):
    """Why an item is quarantined. Source adapters add reasons of their own (bad CSV rows, for example)."""

    EMPTY = "empty"  # zero bytes
    NOT_MEDIA = "not_media"  # text, HTML or anything else that no demuxer knows
    NO_INDEX = "no_index"  # an MP4 whose moov box is missing
    NO_VIDEO = "no_video"  # audio only, or cover art only
    TRUNCATED = "truncated"  # fewer bytes or frames than its own index claims
    DECODE_ERROR = "decode_error"  # more damage than the limit allows, or nothing decodes
    SIZE_CHANGE = "size_change"  # the frame size changes in mid-stream
    UNSUPPORTED = "unsupported"  # readable, but not by the decoder that was chosen
    ANIMATION = "animation"  # an image file of several pictures that no video decoder reads either
    TOO_SHORT = "too_short"
    TOO_LARGE = "too_large"  # more pixels or frames than the limits allow
    TIMEOUT = "timeout"  # more wall-clock or processor time than the limits; the child was killed
    OUT_OF_MEMORY = "out_of_memory"  # the child grew past its limit and was killed
    WORKER_DIED = "worker_died"  # the child was killed from outside (twice), or crashed
    MISSING_FILE = "missing_file"
    SOURCE_CHANGED = "source_changed"  # bytes are not those that the source listing recorded
    CROP_MISMATCH = "crop_mismatch"  # the collection crops to a rectangle that this picture has not
    MISSING_CAPTION = "missing_caption"
    TAKEDOWN = "takedown"  # withdrawn, or a copy of what was withdrawn


# Reasons that depend on the machine and the moment: they are never remembered in an item store.
TRANSIENT_REASONS = frozenset({Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.WORKER_DIED, Reason.MISSING_FILE})


class ItemError(Exception):
    """This one item cannot be used; `reason` is a `Reason` value, `detail` one line for a person."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = str(reason), detail
        super().__init__(reason, detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class ItemFailure:
    """What an engine yields in the place of a result."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, order=True)
class QuarantineRow:
    """One row of `quarantine.parquet`; `step` names where in the stage it fell out."""

    source: str
    source_id: str
    path: str
    reason: str
    detail: str
    step: str


SCHEMA = pa.schema([(name, pa.string()) for name in QuarantineRow.__dataclass_fields__])
_DETAIL = SCHEMA.names.index("detail")


class QuarantineLog:
    """Quarantine rows as they come; many lie in a temporary file. `counts`: by (step, reason), repeats included."""

    def __init__(self, rows: Iterable[QuarantineRow] = ()) -> None:
        self._rows: SortedSpool[tuple[str, ...]] = SortedSpool(_itself, run=RUN)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.extend(rows)

    def append(self, row: QuarantineRow) -> None:
        self._rows.append((row.source, row.source_id, row.path, str(row.reason), row.detail, row.step))
        self.counts[row.step, str(row.reason)] += 1

    def extend(self, rows: Iterable[QuarantineRow]) -> None:
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def reasons(self, steps: Collection[str] | None = None) -> dict[str, int]:
        """How many rows of these steps (None: of all) have each reason."""
        found: Counter[str] = Counter()
        for (step, reason), count in self.counts.items():
            if steps is None or step in steps:
                found[reason] += count
        return dict(found)

    def write(self, path: Path) -> int:
        """Write rows sorted, each once; same rows, same bytes. Returns their number."""
        distinct = (row for row, _ in groupby(self._rows))
        written = 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            group = _table(islice(distinct, _GROUP_ROWS))
            while group.num_rows or not written:
                writer.write_table(group)
                written += group.num_rows
                group = _table(islice(distinct, _GROUP_ROWS))
                if not group.num_rows:
                    break
        return written


def _itself(row: tuple[str, ...]) -> tuple[str, ...]:
    return row


def _table(rows: Iterator[tuple[str, ...]]) -> pa.Table:
    parts = [SCHEMA.empty_table()]
    while some := [
        (*row[:_DETAIL], row[_DETAIL][:_DETAIL_CHARACTERS], *row[_DETAIL + 1 :]) for row in islice(rows, _PART_ROWS)
    ]:
        parts.append(pa.Table.from_arrays([pa.array(c, pa.string()) for c in zip(*some, strict=True)], schema=SCHEMA))
    return pa.concat_tables(parts).combine_chunks()


def write_quarantine(path: Path, rows: Iterable[QuarantineRow]) -> int:
    """Write rows sorted, each once; same rows, same bytes. Returns their number."""
    return QuarantineLog(rows).write(path)


def read_quarantine(path: Path) -> list[QuarantineRow]:
    """Raises DataIntegrityError when the columns are not the schema's."""
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise DataIntegrityError("quarantine table has other columns", value=table.schema.names, where=str(path))
    return [QuarantineRow(**row) for row in table.to_pylist()]


def check_rate(quarantined: int, total: int, limit: float, where: str, key: str = "max_quarantine_rate") -> None:
    """Raise DataIntegrityError when more than `limit` (a share; the config's `key`) of `total` items were held back."""
    if total and quarantined / total > limit:
        raise DataIntegrityError(
            f"{quarantined} of {total} items were quarantined, more than the limit of {limit:.0%}",
            where=where,
            next_step=f"look at `m4v data quarantine`, repair the source or raise {key}",
        )
