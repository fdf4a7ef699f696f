"""A candidate against what a channel names now, by the scores that lineage finds for both: local metrics and a suite's.

Each kind of scores is compared by its newest pair of one protocol, and all dimensions together are one family.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eval.config import NonRegression, named_metrics
from eval.non_regression import judge_together
from eval.pairing import BOOTSTRAP_SEED
from eval.records import SCORES, STAND_IN, Identity, ScoreSet, read_record
from eval.vbench.config import TITLES
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from pipelines.channels.gates import EVALUATE, GENERATE, MEASURING
from pipelines.ledger import Ledger

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """How a checkpoint stands against the one that a channel names; `reasons` are of the dimensions that fell.

    - scores, baseline: ids; where several kinds were compared, those of the first.
    - compared: ids of both by kind (`evaluate`, `vbench`).
    - notes: why a kind of scores was not compared that one of the two has, where the rule asks for none by name.
    """

    against: str
    scores: str | None
    baseline: str | None
    passed: bool
    reasons: tuple[str, ...]
    dimensions: int
    compared: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "against": self.against, "scores": self.scores, "baseline": self.baseline, "passed": self.passed,
            "reasons": list(self.reasons), "dimensions": self.dimensions, "notes": list(self.notes),
            "compared": {kind: {"scores": ours, "baseline": theirs} for kind, (ours, theirs) in self.compared.items()},
        }  # fmt: skip


class _Scored(NamedTuple):
    artifact_id: str
    scores: ScoreSet


def regression(ledger: Ledger, rule: NonRegression, candidate: str, current: str) -> Regression:
    """Judge `candidate` against `current` (ids of checkpoints) by their newest scores of one protocol.

    A rule that names dimensions needs the scores that have them; one that names none takes every kind that both have.
    Without any it did not pass: what was never compared is not let through; beside others it is noted. Raises
    ConfigError for a dimension that the scores do not have.
    """
    with tempfile.TemporaryDirectory() as cache:
        ours, theirs = (_by_kind(_scores(ledger, each, Path(cache))) for each in (candidate, current))
    named = named_metrics(rule)
    needed = {_kind_of(metric, (*ours, *theirs)) for metric in named}
    wanted = needed if rule.metrics else needed | set(ours)
    pairs = {kind: _pair(ours.get(kind, ()), theirs.get(kind, ()), named) for kind in sorted(wanted)}
    found = {kind: pair for kind, pair in pairs.items() if pair is not None}

    def never(kinds: Iterable[str]) -> tuple[str, ...]:
        return tuple(_never(k, candidate, current, ours.get(k, ()), theirs.get(k, ()), named) for k in kinds)

    if not found or any(kind not in found for kind in needed):
        reasons = never(sorted(needed - set(found)) or sorted(wanted) or [EVALUATE])
        return Regression(against=current, scores=None, baseline=None, passed=False, reasons=reasons, dimensions=0)
    rows = judge_together(
        rule, [(mine.scores, other.scores) for mine, other in found.values()], resamples=RESAMPLES,
        confidence=CONFIDENCE, seed=BOOTSTRAP_SEED,
    )  # fmt: skip
    mine, other = next(iter(found.values()))
    reasons = tuple(row.reason for row in rows if not row.passed)
    return Regression(
        against=current, scores=mine.artifact_id, baseline=other.artifact_id, passed=not reasons, reasons=reasons,
        dimensions=len(rows), notes=() if rule.metrics else never(sorted({*ours, *theirs} - set(found))),
        compared={kind: (mine.artifact_id, other.artifact_id) for kind, (mine, other) in found.items()},
    )  # fmt: skip


def _kind_of(metric: str, suites: Iterable[str]) -> str:
    """The suite that a metric is of, by its name; else the local metrics."""
    prefix = metric.partition(".")[0]
    return prefix if prefix in (*suites, *TITLES) else EVALUATE


def _by_kind(found: Iterable[_Scored]) -> Mapping[str, list[_Scored]]:
    kinds: dict[str, list[_Scored]] = {}
    for each in found:
        suite = each.scores.identity.suite
        kinds.setdefault(EVALUATE if suite is None else suite.name, []).append(each)
    return kinds


def _pair(ours: Sequence[_Scored], theirs: Sequence[_Scored], named: Sequence[str]) -> tuple[_Scored, _Scored] | None:
    """The newest of one protocol, those that have more of the named dimensions first."""
    pairs = [(mine, other) for mine in ours for other in theirs
             if not mine.scores.identity.differences(other.scores.identity)]  # fmt: skip
    return max(pairs, key=lambda pair: sum(name in pair[0].scores.metrics for name in named), default=None)


def _never(
    kind: str,
    candidate: str,
    current: str,
    ours: Sequence[_Scored],
    theirs: Sequence[_Scored],
    named: Sequence[str],
) -> str:
    """Why scores of a kind cannot be compared: one has none, every pair stands on stand-in weights, or in what the
    pair that is nearest to one protocol differs."""
    pairs = [(mine.scores.identity, other.scores.identity) for mine in ours for other in theirs]
    sound = [pair for pair in pairs if not any(each.stand_in for each in pair)]
    if pairs and not sound:
        unsound = {name for pair in pairs for each in pair for name in each.stand_in}
        return f"{', '.join(sorted(unsound & set(named)) or sorted(unsound))} cannot be compared: {STAND_IN}"
    what = "scores" if kind == EVALUATE else f"{kind} scores"
    told = f"{candidate[:12]} and {current[:12]} have no {what} of one protocol"
    if sound:
        nearest = min((_differing(*pair) for pair in sound), key=len)
        return f"{told}: {', '.join(nearest)}"
    missing = [each[:12] for each, scored in ((candidate, ours), (current, theirs)) if not scored]
    return f"{told} (prompts, seeds, sampler, metrics): {' and '.join(missing)} has none"


def _differing(ours: Identity, theirs: Identity) -> list[str]:
    """In words; of a suite, what of it differs."""
    found = [f"{name} differs" for name in ours.differences(theirs) if not name.startswith("suite")]
    one, other = ours.suite, theirs.suite
    if one is not None and other is not None:
        fields = (name for name in type(one).model_fields if name != "partial")
        found += [f"{name} of the suite differs" for name in fields if getattr(one, name) != getattr(other, name)]
    for whose, suite in (("the candidate's", one), ("the other's", other)):
        if suite is not None and suite.partial:
            found.append(f"{whose} is partial, which is comparable with nothing")
    return found


def _scores(ledger: Ledger, checkpoint: str, cache: Path) -> Iterator[_Scored]:
    """Of a checkpoint, newest first; those whose bytes went, and records of another kind, are passed over."""
    runs = [
        run
        for made in ledger.consumers(checkpoint)
        if made.stage == GENERATE
        for samples in made.outputs
        for run in ledger.consumers(samples.artifact_id)
        if run.stage in MEASURING
    ]
    ids = [port.artifact_id for run in sorted(runs, key=lambda r: r.committed_at, reverse=True) for port in run.outputs]
    for artifact_id in dict.fromkeys(ids):
        row = ledger.artifact(artifact_id, ArtifactKind.SCORES)
        artifact = Artifact(row.uri, row.artifact_id, row.kind, cache)
        if row.deletion is None and artifact.storage.exists(MANIFEST) and SCORES in artifact.names():
            yield _Scored(artifact_id, read_record(ScoreSet, artifact, SCORES))
