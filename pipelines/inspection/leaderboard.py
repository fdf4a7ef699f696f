"""Checkpoints by their scores: every metric with an interval, the gates' verdicts, the channels. No HTML here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from eval.records import SCORES, STAND_IN, Identity, MetricScore, ScoreSet, read_record
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError
from pipelines.inspection.scored import (
    CONFIDENCE,
    RESAMPLES,
    Change,
    Score,
    changes_of,
    figures_of,
    interval,
    scores_of,
)
from pipelines.ledger import ArtifactRow, Ledger, RunRow

__all__ = [
    "CONFIDENCE", "NEWEST", "RESAMPLES", "Board", "Change", "Entry", "Gate", "Leaderboard", "Metric", "Score",
    "interval", "leaderboard", "metric_of", "protocol_of", "read_scores",
]  # fmt: skip
SCORING = ("evaluate", "vbench")  # stages whose output is scores of samples
GATE = "gate"

NEWEST = 200  # evaluations looked at unless asked for more
_MODEL_FIELDS = ("checkpoint", "ema", "codec", "text_encoder")  # of an identity: the model's own


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    unit: str
    description: str
    higher_is_better: bool | None
    chance: float | None


@dataclass(frozen=True)
class Gate:
    """A gate's verdict on the scores; `refused` are the reasons in words."""

    artifact_id: str
    run_id: str
    baseline: str | None
    passed: bool
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One evaluation of one checkpoint, or of another system's imported videos.

    - system: its name; then `checkpoint` is no artifact and there is no stage.
    - figures: over a suite's dimensions (`vbench.total`, as fractions); failed: dimensions without a score, and why.
    - stand_in: metrics and figures that were measured with stand-in weights: shown with that word, never compared.
    - changes: by metric, against the scores `against`: those of a channel's checkpoint, else of the evaluation before.
    """

    checkpoint: str
    stage: str | None
    scores_id: str
    samples_id: str | None
    run_id: str
    evaluated_at: datetime
    videos: int
    scores: Mapping[str, Score]
    gates: tuple[Gate, ...]
    channels: tuple[str, ...]
    figures: Mapping[str, Score] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    stand_in: tuple[str, ...] = ()
    against: str | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    system: str | None = None

    @property
    def title(self) -> str:
        """The system's name, or the checkpoint's id."""
        return self.system or self.checkpoint

    def score(self, name: str) -> Score | None:
        """Of a figure or a metric."""
        return self.figures.get(name) or self.scores.get(name)


@dataclass(frozen=True)
class Board:
    """Evaluations that may be held against each other: the same prompts, seeds, sampler, sizes and metric versions."""

    protocol: str
    facts: Mapping[str, object]
    metrics: tuple[Metric, ...]
    entries: tuple[Entry, ...]
    figures: tuple[str, ...] = ()

    def sorted_by(self, metric: str | None, descending: bool | None = None) -> tuple[Entry, ...]:
        """Best first, those without a value last; `descending` turns it round. Without a metric, newest first."""
        if metric is None:
            return tuple(sorted(self.entries, key=lambda e: e.evaluated_at, reverse=True))
        if descending is None:
            descending = next((m.higher_is_better for m in self.metrics if m.name == metric), True) is not False

        def key(entry: Entry) -> tuple[bool, float]:
            score = entry.score(metric)
            value = None if score is None or metric in entry.stand_in else score.mean
            return value is None, 0.0 if value is None else (-value if descending else value)

        return tuple(sorted(self.entries, key=key))


@dataclass(frozen=True)
class Leaderboard:
    """`unreadable`: scores whose bytes are gone or damaged, with the reason."""

    boards: tuple[Board, ...]
    unreadable: tuple[tuple[str, str], ...]
    limited: bool


def leaderboard(ledger: Ledger, cache: Path, *, newest: int = NEWEST) -> Leaderboard:
    """Boards by protocol, the one with the newest evaluation first; an evaluation of the same scores counts once."""
    both = [run for stage in SCORING for run in ledger.runs(stage=stage, limit=newest + 1)]
    runs = sorted(both, key=lambda run: run.committed_at, reverse=True)[: newest + 1]
    gates = _gates(ledger, newest * 2)
    channels = _channels(ledger)
    found: dict[str, list[tuple[ScoreSet, Entry]]] = {}
    unreadable: list[tuple[str, str]] = []
    seen: set[str] = set()
    for run in runs[:newest]:
        row = ledger.artifact(run.output("scores").artifact_id, ArtifactKind.SCORES)
        if row.artifact_id in seen:
            continue
        seen.add(row.artifact_id)
        try:
            scores = read_scores(row, cache)
        except DataIntegrityError as error:
            unreadable.append((row.artifact_id, error.what))
            continue
        entry = _entry(ledger, run, row, scores, gates, channels)
        found.setdefault(protocol_of(scores.identity), []).append((scores, entry))
    boards = tuple(_board(name, pairs) for name, pairs in found.items())
    return Leaderboard(boards, tuple(unreadable), len(runs) > newest)


def protocol_of(identity: Identity) -> str:
    """Digest of everything in which two comparable results must agree."""
    return digest_json({k: v for k, v in identity.canonical().items() if k not in _MODEL_FIELDS})


def read_scores(row: ArtifactRow, cache: Path) -> ScoreSet:
    """Raises DataIntegrityError when the bytes are gone or damaged."""
    return _read_scores(row.uri, row.artifact_id, str(cache))


@lru_cache(maxsize=1024)
def _read_scores(uri: str, artifact_id: str, cache: str) -> ScoreSet:
    return read_record(ScoreSet, _present(Artifact(uri, artifact_id, ArtifactKind.SCORES, Path(cache))), SCORES)


def _present(artifact: Artifact) -> Artifact:
    if not artifact.storage.exists(MANIFEST):
        raise DataIntegrityError("its bytes are no longer in the store", value=artifact.id[:12])
    return artifact


def _entry(
    ledger: Ledger,
    run: RunRow,
    row: ArtifactRow,
    scores: ScoreSet,
    gates: Mapping[str, tuple[Gate, ...]],
    channels: Mapping[str, tuple[str, ...]],
) -> Entry:
    checkpoint = scores.identity.checkpoint
    makers = ledger.producers(checkpoint)
    samples = next((p.artifact_id for p in run.inputs if p.kind == ArtifactKind.SAMPLES), None)
    return Entry(
        checkpoint=checkpoint, stage=_stage(makers[-1]) if makers else None, scores_id=row.artifact_id,
        samples_id=samples, run_id=run.run_id, evaluated_at=run.committed_at, videos=len(scores.per_video),
        scores=scores_of(row.uri, row.artifact_id, scores), gates=gates.get(row.artifact_id, ()),
        channels=channels.get(checkpoint, ()), figures=figures_of(row.uri, row.artifact_id, scores),
        failed=scores.figures.failed if scores.figures is not None else {}, stand_in=_stand_in(scores),
        system=scores.identity.system,
    )  # fmt: skip


def _stand_in(scores: ScoreSet) -> tuple[str, ...]:
    """Figures among them where nothing of the record is sound; newer records have no figure then."""
    named = scores.identity.stand_in
    if scores.figures is None or not named or not set(named) >= set(scores.metrics):
        return named
    return (*named, *scores.figures.figures)


def _with_changes(pairs: Sequence[tuple[ScoreSet, Entry]]) -> tuple[Entry, ...]:
    """Entries of a board (newest first), each against the newest that a channel names, else the one before it."""
    promoted = next((pair for pair in pairs if pair[1].channels), None)
    found = []
    for number, (scores, entry) in enumerate(pairs):
        other = promoted or (pairs[number + 1] if number + 1 < len(pairs) else None)
        if other is None or other[1] is entry:
            found.append(entry)
            continue
        ids = (entry.scores_id, other[1].scores_id)
        found.append(replace(entry, against=ids[1], changes=changes_of(ids, scores, other[0])))
    return tuple(found)


def _stage(run: RunRow) -> str:
    """`train 57f` rather than `train`: the ladder's stages share a name."""
    name = run.config.get("name")
    return f"{run.stage} {name}" if name and name != run.stage else run.stage


def metric_of(name: str, score: MetricScore) -> Metric:
    return Metric(name, score.title, score.unit, score.description, score.higher_is_better, score.chance)


def _board(protocol: str, pairs: Sequence[tuple[ScoreSet, Entry]]) -> Board:
    first = pairs[0][0]
    metrics = {name: metric_of(name, m) for scores, _ in pairs for name, m in scores.metrics.items()}
    identity = first.identity
    facts: dict[str, object] = {
        "prompts": identity.prompt_set, "samples a prompt": identity.samples_per_prompt,
        "size": f"{identity.width}×{identity.height}, {identity.frames} frames at {identity.fps:g} fps",
        # Of another system's videos no seed is known.
        "seed": identity.seed_rule if identity.system else f"{identity.base_seed} ({identity.seed_rule})",
        "sampler": json.dumps(identity.sampler, sort_keys=True),
        "video codec": identity.video_codec,
    }  # fmt: skip
    if identity.suite is not None:
        facts["suite"] = (
            f"{identity.suite.name} {identity.suite.version}, {identity.suite.mode}, {identity.suite.prompt_set}"
        )
    if identity.stand_in:
        facts["weights"] = f"{STAND_IN}: {', '.join(identity.stand_in)}"
    figures = tuple(dict.fromkeys(name for _, entry in pairs for name in entry.figures))
    return Board(protocol, facts, tuple(metrics.values()), _with_changes(pairs), figures)


def _gates(ledger: Ledger, limit: int) -> dict[str, tuple[Gate, ...]]:
    """Verdicts by the scores that they judge, newest first; each verdict once."""
    found: dict[str, dict[str, Gate]] = {}
    for run in ledger.runs(stage=GATE, limit=limit):
        inputs = {port.name: port.artifact_id for port in run.inputs}
        row = ledger.artifact(run.output("scores").artifact_id, ArtifactKind.SCORES)
        gate = Gate(
            row.artifact_id, run.run_id, inputs.get("baseline"), row.summary.get("passed") is True,
            tuple(str(reason) for reason in row.summary.get("refused") or ()),
        )  # fmt: skip
        for scores in (inputs["scores"], inputs.get("suite")):
            if scores is not None:
                found.setdefault(scores, {}).setdefault(gate.artifact_id, gate)
    return {scores: tuple(gates.values()) for scores, gates in found.items()}


def _channels(ledger: Ledger) -> dict[str, tuple[str, ...]]:
    """Names of the channels that point at a checkpoint now."""
    now: dict[str, str] = {}
    for row in sorted(ledger.channel_history(), key=lambda r: r.seq):
        now[row.name] = row.artifact_id
    found: dict[str, list[str]] = {}
    for name, artifact_id in now.items():
        found.setdefault(artifact_id, []).append(name)
    return {artifact_id: tuple(sorted(names)) for artifact_id, names in found.items()}
