"""Two dataset versions, or clip tables, side by side: clips added and removed, buckets, funnels. No HTML here.

DuckDB joins the two tables on disk, so millions of clips need little memory.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from dataprep.curation.table import CLIPS, FUNNEL
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import InputError
from m4v.core.shard_index import INDEX
from pipelines.inspection.clips import read_funnel
from pipelines.inspection.targets import Target

EXAMPLES = 50
_FRAMES, _PIXELS = 8, 8  # of a latent step: see the bucket columns of the index
_MEMORY = "512MB"


@dataclass(frozen=True)
class SourceChange:
    """Clips of one source: in the first version, in the second, and those that only one of them holds."""

    source: str
    before: int
    after: int
    added: int
    removed: int


@dataclass(frozen=True)
class BucketChange:
    """Samples and latent tokens of one bucket; sizes in frames and pixels."""

    media: str
    frames: int
    height: int
    width: int
    samples_before: int
    samples_after: int
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True)
class FunnelChange:
    """A step of curation in both: what left it, of how many; None where a version has no such step."""

    step: str
    unit: str
    before: tuple[int, int] | None
    after: tuple[int, int] | None


@dataclass(frozen=True)
class ChangedClip:
    clip_id: str
    source: str
    source_id: str
    start_us: int
    end_us: int


@dataclass(frozen=True)
class VersionDiff:
    """`added` and `removed` hold the first `EXAMPLES` clips in order of id; the counts are in `sources`."""

    kind: ArtifactKind
    before: str
    after: str
    sources: tuple[SourceChange, ...]
    buckets: tuple[BucketChange, ...]
    funnel: tuple[FunnelChange, ...]
    added: tuple[ChangedClip, ...]
    removed: tuple[ChangedClip, ...]

    @property
    def added_clips(self) -> int:
        return sum(row.added for row in self.sources)

    @property
    def removed_clips(self) -> int:
        return sum(row.removed for row in self.sources)

    @property
    def common_clips(self) -> int:
        return sum(row.before - row.removed for row in self.sources)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "added_clips": self.added_clips, "removed_clips": self.removed_clips}


def compare_versions(
    before: Target, after: Target, clips_before: Artifact | None = None, clips_after: Artifact | None = None
) -> VersionDiff:
    """Hold two datasets, or the kept clips of two clip tables, against each other. `clips_*`: the clip tables they
    were made from, for the funnels; of a clip table its own.

    Raises InputError unless both are of one of these kinds.
    """
    kind = before.artifact.kind
    if kind != after.artifact.kind or kind not in (ArtifactKind.DATASET, ArtifactKind.CLIPS):
        raise InputError(
            f"a {kind} cannot be compared with a {after.artifact.kind}", value=f"{before.id[:12]} {after.id[:12]}",
            next_step="name two datasets, or two clip tables",
        )  # fmt: skip
    if kind == ArtifactKind.CLIPS:
        clips_before, clips_after = before.artifact, after.artifact
    with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": _MEMORY}) as database:
        _view(database, "before", before.artifact)
        _view(database, "after", after.artifact)
        return VersionDiff(
            kind=kind, before=before.id, after=after.id, sources=_sources(database),
            buckets=_buckets(database) if kind == ArtifactKind.DATASET else (),
            funnel=_funnels(clips_before, clips_after),
            added=_only(database, "after", "before"), removed=_only(database, "before", "after"),
        )  # fmt: skip


def _view(database: Any, name: str, artifact: Artifact) -> None:
    """`NAME_rows`, one row a sample (of a clip table: a kept clip), and `NAME`, one row a clip."""
    dataset = artifact.kind == ArtifactKind.DATASET
    path: Path = artifact.path(INDEX if dataset else CLIPS)
    quoted = str(path).replace("'", "''")  # a view takes no parameters
    kept = "" if dataset else " WHERE kept"
    database.execute(f"CREATE VIEW {name}_rows AS SELECT * FROM read_parquet('{quoted}'){kept}")
    columns = "source, source_id, start_us, end_us"
    firsts = ", ".join(f"min({c}) AS {c}" for c in columns.split(", "))
    database.execute(f"CREATE VIEW {name} AS SELECT clip_id, {firsts} FROM {name}_rows GROUP BY clip_id")


def _sources(database: Any) -> tuple[SourceChange, ...]:
    rows = database.execute(
        """SELECT coalesce(a.source, b.source) AS name, count(a.clip_id), count(b.clip_id),
        count(*) FILTER (WHERE a.clip_id IS NULL), count(*) FILTER (WHERE b.clip_id IS NULL)
        FROM before a FULL OUTER JOIN after b ON a.clip_id = b.clip_id GROUP BY name ORDER BY name"""
    ).fetchall()
    return tuple(SourceChange(*row) for row in rows)


def _buckets(database: Any) -> tuple[BucketChange, ...]:
    keys = "media, bucket_t, bucket_h, bucket_w"
    counted = "SELECT {keys}, count(*) AS n, sum(tokens)::BIGINT AS tokens FROM {name}_rows GROUP BY {keys}"
    rows = database.execute(
        f"""SELECT {keys}, coalesce(a.n, 0), coalesce(b.n, 0), coalesce(a.tokens, 0), coalesce(b.tokens, 0)
        FROM ({counted.format(keys=keys, name="before")}) a
        FULL OUTER JOIN ({counted.format(keys=keys, name="after")}) b USING ({keys}) ORDER BY {keys}"""
    ).fetchall()
    return tuple(
        BucketChange(media, _FRAMES * (t - 1) + 1, _PIXELS * h, _PIXELS * w, *counts)
        for media, t, h, w, *counts in rows
    )


def _only(database: Any, here: str, there: str) -> tuple[ChangedClip, ...]:
    rows = database.execute(
        f"""SELECT clip_id, source, source_id, start_us, end_us FROM {here} ANTI JOIN {there} USING (clip_id)
        ORDER BY clip_id LIMIT {EXAMPLES}"""
    ).fetchall()
    return tuple(ChangedClip(*row) for row in rows)


def _funnels(before: Artifact | None, after: Artifact | None) -> tuple[FunnelChange, ...]:
    found: dict[tuple[str, str], list[tuple[int, int] | None]] = {}
    for place, artifact in enumerate((before, after)):
        if artifact is None or FUNNEL not in artifact.names(FUNNEL):
            continue
        for step in read_funnel(artifact):
            pair = found.setdefault((str(step["step"]), str(step["unit"])), [None, None])
            pair[place] = (int(step["out"]), int(step["in"]))
    return tuple(FunnelChange(step, unit, a, b) for (step, unit), (a, b) in found.items())
