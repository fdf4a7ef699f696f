"""Clips of the curate stage once they are measured: on disk in sorted runs, merged into the tables at the end.

Rows are numbered run by run; that number is a clip's place among the candidates of a decision. A run becomes a file
once there are many rows, so memory does not grow with them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataprep.captioning.provenance import FIELD
from dataprep.curation.filters import Candidates
from dataprep.curation.sorted_runs import SortedRuns
from dataprep.curation.stored import CLIP_COLUMNS, HASH_COLUMNS, Part, StoredValues, fingerprints_of
from dataprep.curation.table import SCHEMA, Clip
from dataprep.dedup import Fingerprints
from dataprep.dedup.spill import Texts

ROW, OBJECT, EMBEDDING = "row", "object", "embedding"
ORDER = ("source", "path", "start_us", "clip_id")  # of the clip table
_OWN = (
    pa.field("input_order", pa.int64()),
    pa.field("drawn", pa.bool_()),
    pa.field("dense", pa.binary()),  # little-endian 64-bit words
    pa.field(EMBEDDING, pa.binary()),
    pa.field("captioned", pa.bool_()),  # has a caption, or a model will write one if it is kept
)
_PART_ROWS = 4096  # Python rows that become columns together


class ClipLog:
    """Candidate clips. `provenance`: the table has that of captions; `objects`: `chosen` can be asked for."""

    def __init__(self, *, provenance: bool = False, objects: bool = False) -> None:
        own = [*_OWN, *([pa.field(OBJECT, pa.binary())] if objects else [])]
        self.table_schema = SCHEMA.append(FIELD) if provenance else SCHEMA
        self._schema = pa.schema([*self.table_schema, *own])
        self._objects, self._rows = objects, list[dict[str, object]]()
        self._runs = SortedRuns(self._schema, ORDER, ROW)
        self.embedded = False  # whether any clip has an embedding
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, clip: Clip) -> None:
        """Keep a clip as it is now; its id must be new."""
        row = clip.row()
        row["input_order"], row["drawn"] = clip.order, clip.drawn
        row["dense"], row[EMBEDDING] = clip.dense.astype("<u8").tobytes(), clip.embedding or None
        row["captioned"] = bool(clip.captions) or clip.awaits_caption
        if self._objects:
            row[OBJECT] = pickle.dumps(clip, pickle.HIGHEST_PROTOCOL)
        self.embedded = self.embedded or bool(clip.embedding)
        self._rows.append(row)
        self._count += 1
        if len(self._rows) == _PART_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._runs.add(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def candidates(self) -> Candidates:
        """The clips as columns, by their row numbers."""
        self._flush()
        ids = Texts()
        for batch in self.batches(("clip_id",)):
            ids.add(batch["clip_id"].to_pylist())
        drawn, captioned = (self.column(n).to_numpy() for n in ("drawn", "captioned"))
        return Candidates(ids, StoredValues(self), drawn, captioned, self._fingerprints)

    def _fingerprints(self, places: NDArray[np.int64]) -> Fingerprints:
        names = tuple(dict.fromkeys((*CLIP_COLUMNS, *HASH_COLUMNS, *((EMBEDDING,) if self.embedded else ()))))
        parts = (Part(b, b, b[EMBEDDING] if self.embedded else None) for b in self.batches(names))
        return fingerprints_of(parts, places)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, by row number."""
        return pa.chunked_array([b[name] for b in self.batches((name,))], self._schema.field(name).type)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, by row number."""
        self._flush()
        return self._runs.batches(names)

    def chosen(self, rows: NDArray[np.bool_]) -> Iterator[tuple[int, Clip]]:
        """The clips of which `rows` is true, each as it was added, with its row number."""
        start = 0
        for batch in self.batches((OBJECT,)):
            for place in np.flatnonzero(rows[start : start + len(batch)]).tolist():
                yield start + place, pickle.loads(batch[OBJECT][place].as_py())
            start += len(batch)

    def in_order(self) -> Iterator[pa.Table]:
        """All rows in the order of the clip table, with all columns and the row number, in tables of any size."""
        self._flush()
        return self._runs.merged()
