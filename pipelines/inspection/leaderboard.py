"""Checkpoints by their scores: every metric with an interval, the gates' verdicts, the channels. No HTML here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval.records import SCORES, Identity, MetricScore, ScoreSet, read_record
from eval.stages.gate import MIN_PROMPTS
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError
from m4v.core.rng import generator
from pipelines import stages
from pipelines.ledger import ArtifactRow, Ledger, RunRow

RESAMPLES = 2000
CONFIDENCE = 0.95
NEWEST = 200  # evaluations looked at unless asked for more
_SEED = 0
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
class Score:
    """Mean over the videos that the metric applies to; `interval` is a bootstrap over prompts, None below
    `MIN_PROMPTS` of them."""

    mean: float | None
    interval: tuple[float, float] | None
    videos: int
    prompts: int


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
    """One evaluation of one checkpoint."""

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


@dataclass(frozen=True)
class Board:
    """Evaluations that may be held against each other: the same prompts, seeds, sampler, sizes and metric versions."""

    protocol: str
    facts: Mapping[str, object]
    metrics: tuple[Metric, ...]
    entries: tuple[Entry, ...]

    def sorted_by(self, metric: str | None, descending: bool | None = None) -> tuple[Entry, ...]:
        """Best first, those without a value last; `descending` turns it round. Without a metric, newest first."""
        if metric is None:
            return tuple(sorted(self.entries, key=lambda e: e.evaluated_at, reverse=True))
        if descending is None:
            descending = next((m.higher_is_better for m in self.metrics if m.name == metric), True) is not False

        def key(entry: Entry) -> tuple[bool, float]:
            value = entry.scores[metric].mean if metric in entry.scores else None
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
    runs = ledger.runs(stage=stages.EVALUATE.name, limit=newest + 1)
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


def interval(score: MetricScore, prompts: Sequence[int], metric: str) -> tuple[tuple[float, float] | None, int]:
    """Bootstrap interval of the mean over prompts (a prompt's samples averaged), and the number of prompts. The draws
    depend on the metric's name alone, so a page shows the same figures every time."""
    groups: dict[int, list[float]] = {}
    for prompt, value in zip(prompts, score.values, strict=True):
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    means = np.array([np.mean(groups[p]) for p in sorted(groups)])
    if len(means) < MIN_PROMPTS:
        return None, len(means)
    draws = generator(_SEED, "leaderboard", metric).integers(0, len(means), size=(RESAMPLES, len(means)))
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(means[draws].mean(axis=1), [tail, 1.0 - tail])
    return (float(low), float(high)), len(means)


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
        scores=_scores_of(row.uri, row.artifact_id, scores), gates=gates.get(row.artifact_id, ()),
        channels=channels.get(checkpoint, ()),
    )  # fmt: skip


_SCORES: dict[tuple[str, str], dict[str, Score]] = {}
_KEPT = 4096


def _scores_of(uri: str, artifact_id: str, scores: ScoreSet) -> Mapping[str, Score]:
    """Of immutable scores, so the draws are made once a process."""
    place = (uri, artifact_id)
    if place not in _SCORES:
        if len(_SCORES) >= _KEPT:
            _SCORES.pop(next(iter(_SCORES)))
        prompts = [video.prompt_index for video in scores.per_video]
        _SCORES[place] = {name: _score(name, metric, prompts) for name, metric in scores.metrics.items()}
    return _SCORES[place]


def _score(name: str, metric: MetricScore, prompts: Sequence[int]) -> Score:
    bounds, count = interval(metric, prompts, name)
    return Score(metric.mean, bounds, metric.count, count)


def _stage(run: RunRow) -> str:
    """`train 57f` rather than `train`: the ladder's stages share a name."""
    name = run.config.get("name")
    return f"{run.stage} {name}" if name and name != run.stage else run.stage


def _board(protocol: str, pairs: Sequence[tuple[ScoreSet, Entry]]) -> Board:
    first = pairs[0][0]
    metrics = {
        name: Metric(name, m.title, m.unit, m.description, m.higher_is_better, m.chance)
        for scores, _ in pairs
        for name, m in scores.metrics.items()
    }
    identity = first.identity
    facts: dict[str, object] = {
        "prompts": identity.prompt_set, "samples a prompt": identity.samples_per_prompt,
        "size": f"{identity.width}×{identity.height}, {identity.frames} frames at {identity.fps:g} fps",
        "seed": f"{identity.base_seed} ({identity.seed_rule})", "sampler": json.dumps(identity.sampler, sort_keys=True),
        "video codec": identity.video_codec,
    }  # fmt: skip
    return Board(protocol, facts, tuple(metrics.values()), tuple(entry for _, entry in pairs))


def _gates(ledger: Ledger, limit: int) -> dict[str, tuple[Gate, ...]]:
    """Verdicts by the scores that they judge, newest first; each verdict once."""
    found: dict[str, dict[str, Gate]] = {}
    for run in ledger.runs(stage=stages.GATE.name, limit=limit):
        inputs = {port.name: port.artifact_id for port in run.inputs}
        row = ledger.artifact(run.output("scores").artifact_id, ArtifactKind.SCORES)
        gate = Gate(
            row.artifact_id, run.run_id, inputs.get("baseline"), row.summary.get("passed") is True,
            tuple(str(reason) for reason in row.summary.get("refused") or ()),
        )  # fmt: skip
        found.setdefault(inputs["scores"], {}).setdefault(gate.artifact_id, gate)
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
