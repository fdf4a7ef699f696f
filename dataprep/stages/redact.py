"""Stage `redact`: a clip table without some clips, everything else as it was.

Rows and previews of the clips go, and a quarantine row says why; nothing is decided anew, so what was dropped stays
dropped. Previews that stay are shared with the old table.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprep.blocked import STEP as BLOCKED
from dataprep.curation.candidates import EMBEDDINGS, HASHES
from dataprep.curation.table import CLIPS, FUNNEL, PREVIEWS, Funnel
from dataprep.quarantine import QUARANTINE, QuarantineRow, Reason, read_quarantine, write_quarantine
from dataprep.redact_config import RedactConfig
from m4v.core.artifacts import Artifact
from m4v.core.errors import InputError
from m4v.core.stage import StageContext

_ROWS_PER_GROUP = 8192
_GONE = ("clip_id", "source", "source_id", "path", "kept", "media", "start_us", "end_us")
_TABLES = (CLIPS, HASHES, EMBEDDINGS)


def run(context: StageContext) -> None:
    """Raises InputError for clips that are not in the table, and when no kept clip would be left."""
    config = context.config(RedactConfig)
    before, out = context.input("clips"), context.output("clips")
    gone = _gone(before, config.clips)
    for table in _TABLES:
        if table in before.names():
            _without(before.path(table), out / table, pa.array(config.clips))
    kept = [row for row in gone if row["kept"]]
    summary = dict(before.manifest.summary)
    if int(str(summary["kept"])) <= len(kept):
        raise InputError("no kept clip would be left", value=len(kept), where="redact")
    _write_quarantine(before, out, gone, config.reason)
    _write_funnel(before, out / FUNNEL, int(str(summary["kept"])), len(kept))
    removed = {f"{PREVIEWS}/{clip}.jpg" for clip in config.clips}
    handled = {*_TABLES, QUARANTINE, FUNNEL, *removed}
    for name in (n for n in before.names() if n not in handled):
        context.share("clips", name, before, name)
    context.summary("clips", _summary(summary, gone, kept))
    context.metrics({"clips_removed": len(gone), "previews_removed": len(removed & set(before.names()))})


def _gone(before: Artifact, clips: tuple[str, ...]) -> list[dict[str, Any]]:
    wanted = pa.array(clips)
    found: list[dict[str, Any]] = []
    for batch in pq.ParquetFile(before.path(CLIPS), pre_buffer=False).iter_batches(columns=list(_GONE)):
        found += batch.filter(pc.is_in(batch["clip_id"], value_set=wanted)).to_pylist()
    if missing := sorted(set(clips) - {row["clip_id"] for row in found}):
        raise InputError(f"{len(missing)} clips are not in the table", value=missing[0], where=before.id)
    return found


def _without(source: Path, target: Path, clips: pa.Array) -> None:
    """Copy a table by row groups, less the rows of `clips`."""
    table = pq.ParquetFile(source, pre_buffer=False)
    with pq.ParquetWriter(target, table.schema_arrow, compression="zstd") as writer:
        for batch in table.iter_batches(batch_size=_ROWS_PER_GROUP):
            stays = pc.invert(pc.is_in(batch["clip_id"], value_set=clips))
            writer.write_table(pa.Table.from_batches([batch.filter(stays)]))


def _write_quarantine(before: Artifact, out: Path, gone: list[dict[str, Any]], reason: str) -> None:
    rows = read_quarantine(before.path(QUARANTINE)) if QUARANTINE in before.names() else []
    rows += [QuarantineRow(r["source"], r["source_id"], r["path"], Reason.TAKEDOWN, reason, BLOCKED) for r in gone]
    write_quarantine(out / QUARANTINE, rows)


def _write_funnel(before: Artifact, target: Path, kept: int, gone: int) -> None:
    steps = json.loads(before.path(FUNNEL).read_bytes()) if FUNNEL in before.names() else []
    funnel = Funnel(steps)
    funnel.add("takedown", "clips", kept, {str(Reason.TAKEDOWN): gone} if gone else {})
    funnel.write(target)


def _summary(before: dict[str, Any], gone: list[dict[str, Any]], kept: list[dict[str, Any]]) -> dict[str, object]:
    reasons = Counter(before.get("dropped_by_reason", {}))
    reasons[str(Reason.TAKEDOWN)] += len(gone)
    seconds = sum(row["end_us"] - row["start_us"] for row in kept) / 1e6
    return {
        **before,
        "clips": before["clips"] - len(gone),
        "kept": before["kept"] - len(kept),
        "kept_videos": before["kept_videos"] - sum(row["media"] == "video" for row in kept),
        "kept_seconds": round(before["kept_seconds"] - seconds, 3),
        "quarantined": before["quarantined"] + len(gone),
        "dropped_by_reason": dict(sorted(reasons.items())),
    }
