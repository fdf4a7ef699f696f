"""What was decided about the clips of a log, and the tables of the artifact that say it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curation import candidates
from dataprep.curation.candidates import EMBEDDINGS, HASHES
from dataprep.curation.clip_log import ROW, ClipLog
from dataprep.curation.filters import Decision
from dataprep.curation.table import CLIPS, Clip

_GROUP_ROWS = 8192


@dataclass
class Verdicts:
    """By row number: the rule that dropped a clip (None: kept) and what it is a copy of. `changed`: clips with other
    captions than were logged, or another rule; `gone`: clips that leave the table."""

    rules: NDArray[np.object_]
    duplicate_of: NDArray[np.object_]
    changed: dict[int, Clip] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, decision: Decision) -> Verdicts:
        return cls(np.array(decision.drop_rules, dtype=object), np.array(decision.duplicate_of, dtype=object))

    def take(self, row: int, clip: Clip) -> None:
        """Captions and rule of a clip as it is now."""
        self.changed[row], self.rules[row] = clip, clip.drop_rule

    @property
    def listed(self) -> NDArray[np.bool_]:
        """Rows of the table."""
        found = np.ones(len(self.rules), dtype=np.bool_)
        found[list(self.gone)] = False
        return found

    @property
    def kept(self) -> NDArray[np.bool_]:
        return _is_none(self.rules) & self.listed

    def dropped(self) -> Counter[str]:
        """Dropped rows of the table by their rule."""
        return Counter(rule for rule in self.rules[self.listed].tolist() if rule is not None)


def _is_none(texts: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.asarray(pa.array(texts, pa.string()).is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)


def kept_facts(log: ClipLog, kept: NDArray[np.bool_]) -> dict[str, object]:
    """Videos and seconds among the kept clips."""
    video = pc.equal(log.column("media"), "video").to_numpy()
    micros = pc.subtract(log.column("end_us"), log.column("start_us")).to_numpy()
    return {
        "kept_videos": int(np.count_nonzero(video & kept)),
        "kept_seconds": round(int(micros[kept].sum()) / 1e6, 3),
    }


def write_tables(directory: Path, log: ClipLog, verdicts: Verdicts) -> None:
    """`clips.parquet`, `hashes.parquet` and, where there are embeddings, `embeddings.parquet`: rows by source, path
    and time. Same clips and verdicts, same bytes."""
    schemas = {CLIPS: log.table_schema, HASHES: candidates.SCHEMA}
    if log.embedded:
        schemas[EMBEDDINGS] = candidates.EMBEDDING_SCHEMA
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(pq.ParquetWriter(directory / name, schema, compression="zstd"))
            for name, schema in schemas.items()
        }
        for group in _groups(_judged(part, log, verdicts) for part in log.in_order()):
            for name, writer in writers.items():
                writer.write_table(group.select(schemas[name].names).cast(schemas[name]))


def _judged(part: pa.Table, log: ClipLog, verdicts: Verdicts) -> pa.Table:
    """Rows with what was decided about them, without those that are gone."""
    if verdicts.gone:
        part = part.filter(pc.invert(pc.is_in(part[ROW], pa.array(sorted(verdicts.gone), pa.int64()))))
    rows = part[ROW].to_numpy()
    rules = verdicts.rules[rows]
    columns: dict[str, pa.Array] = {
        "kept": pa.array(_is_none(rules)),
        "drop_rule": pa.array(rules, pa.string()),
        "duplicate_of": pa.array(verdicts.duplicate_of[rows], pa.string()),
        **_rewritten(part, rows, log, verdicts),
    }
    for name, values in columns.items():
        place = part.schema.get_field_index(name)
        part = part.set_column(place, part.schema.field(place), values)
    return part


def _rewritten(part: pa.Table, rows: NDArray[np.int64], log: ClipLog, verdicts: Verdicts) -> dict[str, pa.Array]:
    """Caption columns, where clips of these rows got other captions."""
    changed = {place: verdicts.changed[row].row() for place, row in enumerate(rows.tolist()) if row in verdicts.changed}
    names = [n for n in ("captions", "caption_digest", "caption_provenance") if n in log.table_schema.names]
    columns = {}
    for name in names if changed else ():
        values = part[name].to_pylist()
        for place, row in changed.items():
            values[place] = row[name]
        columns[name] = pa.array(values, log.table_schema.field(name).type)
    return columns


def _groups(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of a row group; the last may be smaller."""
    waiting: list[pa.Table] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += part.num_rows
        if held >= _GROUP_ROWS:
            whole = pa.concat_tables(waiting)
            full = held // _GROUP_ROWS * _GROUP_ROWS
            for start in range(0, full, _GROUP_ROWS):
                yield whole.slice(start, _GROUP_ROWS).combine_chunks()
            waiting, held = [whole.slice(full)], held - full
    if held:
        yield pa.concat_tables(waiting).combine_chunks()
