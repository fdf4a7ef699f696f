"""Two evaluations beside each other: every score, what changed where they may be compared, their videos in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.records import ScoreSet
from m4v.core.artifacts import ArtifactKind
from pipelines.inspection.leaderboard import Metric, metric_of, read_scores
from pipelines.inspection.scored import Change, Score, changes_of, figures_of, scores_of
from pipelines.ledger import ArtifactRow, Ledger


@dataclass(frozen=True)
class Side:
    """`stand_in`: metrics that were measured with stand-in weights, which are no results. `system`: name of the system
    whose imported videos were measured, in place of a checkpoint."""

    scores_id: str
    checkpoint: str
    samples: ArtifactRow | None
    stand_in: tuple[str, ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class ScorePair:
    """A metric or figure of both sides. `change` is of the right over the left, None where it may not be told;
    `shares` are the lengths of the two bars."""

    metric: Metric
    left: Score | None
    right: Score | None
    change: Change | None
    shares: tuple[float, float]


@dataclass(frozen=True)
class VideoPair:
    prompt: str
    sample_index: int
    left: str
    right: str


@dataclass(frozen=True)
class SideBySide:
    """`differences`: in what else than the model the two differ; where there are any, nothing is subtracted."""

    left: Side
    right: Side
    differences: tuple[str, ...]
    rows: tuple[ScorePair, ...]
    videos: tuple[VideoPair, ...]
    total_videos: int


def side_by_side(ledger: Ledger, cache: Path, left: str, right: str, *, first: int = 0, shown: int = 12) -> SideBySide:
    """Raises InputError for scores that the ledger does not have, DataIntegrityError for damaged ones."""
    rows = [ledger.artifact(identity, ArtifactKind.SCORES) for identity in (left, right)]
    sets = [read_scores(row, cache) for row in rows]
    differences = tuple(sets[1].identity.differences(sets[0].identity))
    changes = changes_of((rows[1].artifact_id, rows[0].artifact_id), sets[1], sets[0])
    scores = [
        {**figures_of(row.uri, row.artifact_id, found), **scores_of(row.uri, row.artifact_id, found)}
        for row, found in zip(rows, sets, strict=True)
    ]
    metrics = _metrics(sets[0]) | _metrics(sets[1])
    pairs = tuple(
        _pair(metric, scores[0].get(name), scores[1].get(name), changes.get(name)) for name, metric in metrics.items()
    )
    videos = _videos(sets[0], sets[1])
    return SideBySide(
        _side(ledger, rows[0], sets[0]), _side(ledger, rows[1], sets[1]), differences, pairs,
        tuple(videos[first : first + shown]), len(videos),
    )  # fmt: skip


def _side(ledger: Ledger, row: ArtifactRow, scores: ScoreSet) -> Side:
    makers = ledger.producers(row.artifact_id)
    found = next((p.artifact_id for run in makers for p in run.inputs if p.kind == ArtifactKind.SAMPLES), None)
    samples = None if found is None else ledger.artifact(found, ArtifactKind.SAMPLES)
    identity = scores.identity
    return Side(row.artifact_id, identity.checkpoint, samples, identity.stand_in, identity.system)


def _metrics(scores: ScoreSet) -> dict[str, Metric]:
    figures = scores.figures.figures if scores.figures is not None else {}
    named = {n: Metric(n, n.rpartition(".")[2], "", "of a suite's dimensions, a fraction", True, None) for n in figures}
    return named | {name: metric_of(name, m) for name, m in scores.metrics.items()}


def _pair(metric: Metric, left: Score | None, right: Score | None, change: Change | None) -> ScorePair:
    means = [abs(s.mean) if s is not None and s.mean is not None else 0.0 for s in (left, right)]
    most = max(1.0, *means) if max(means) <= 1.0 else max(means)
    return ScorePair(metric, left, right, change, (means[0] / most, means[1] / most))


def _videos(left: ScoreSet, right: ScoreSet) -> list[VideoPair]:
    """Of the same prompt and sample, in the order of the left."""
    theirs: Mapping[tuple[str, int], str] = {(v.prompt, v.sample_index): v.file for v in right.per_video}
    return [
        VideoPair(v.prompt, v.sample_index, v.file, theirs[v.prompt, v.sample_index])
        for v in left.per_video
        if (v.prompt, v.sample_index) in theirs
    ]
