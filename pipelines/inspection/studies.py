"""Human-preference studies of the ledger and what their answers said, newest first. No HTML here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eval.records import SYSTEM, read_record
from eval.study.records import RESULTS, STUDY, CriterionResult, Study, StudyResults, SystemResult
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.errors import DataIntegrityError, InputError
from pipelines.ledger import ArtifactRow, Ledger

CREATING, COUNTING = "study", "study_results"
NEWEST = 50  # studies listed unless asked for more
_MARGIN = 0.06  # of a chart's width, on either side


@dataclass(frozen=True)
class Counted:
    """Results of a study: the answers that stood when they were asked for."""

    artifact_id: str
    run_id: str
    made_at: datetime
    participants: int
    answers: int
    excluded: int


@dataclass(frozen=True)
class Listed:
    """A study as its artifact's summary tells it; `results` newest first."""

    artifact_id: str
    run_id: str
    made_at: datetime
    title: str
    mode: str
    systems: tuple[str, ...]
    prompts: int
    results: tuple[Counted, ...]


@dataclass(frozen=True)
class Source:
    """A system of the study: its samples, and the checkpoint that made them, None for another system's videos."""

    name: str
    samples: str
    checkpoint: str | None


@dataclass(frozen=True)
class Bar:
    """A system's strength in a chart, as shares of its width; `low`, `high` None where there is no interval."""

    system: SystemResult
    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CriterionView:
    """`bars`: strongest first; `zero`: where the mean of all systems stands; `preferred[i][j]`: share of the
    comparisons of i and j that i won, in the order of `bars`; None where they were never compared."""

    found: CriterionResult
    bars: tuple[Bar, ...]
    zero: float
    preferred: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class StudyView:
    row: ArtifactRow
    study_id: str
    study: Study
    results: StudyResults
    sources: tuple[Source, ...]
    criteria: tuple[CriterionView, ...]
    others: tuple[Counted, ...]


def listed(ledger: Ledger, newest: int = NEWEST) -> list[Listed]:
    """Every study once, by its newest run."""
    found: dict[str, Listed] = {}
    for run in ledger.runs(stage=CREATING, limit=newest):
        artifact_id = run.output("study").artifact_id
        if artifact_id in found:
            continue
        facts = ledger.artifact(artifact_id, ArtifactKind.REPORT).summary
        found[artifact_id] = Listed(
            artifact_id=artifact_id, run_id=run.run_id, made_at=run.committed_at, title=str(facts.get("study", "")),
            mode=str(facts.get("mode", "")), systems=tuple(facts.get("systems", ())),
            prompts=int(facts.get("prompts", 0)), results=counted(ledger, artifact_id),
        )  # fmt: skip
    return list(found.values())


def has_more(ledger: Ledger, newest: int) -> bool:
    """Whether there are older runs than `listed` looks at; one made again is listed once, so its length cannot tell."""
    return len(ledger.runs(stage=CREATING, limit=newest + 1)) > newest


def counted(ledger: Ledger, study_id: str) -> tuple[Counted, ...]:
    """Results of a study, each once, newest first."""
    runs = [run for run in ledger.consumers(study_id) if run.stage == COUNTING]
    found: dict[str, Counted] = {}
    for run in sorted(runs, key=lambda each: each.committed_at, reverse=True):
        artifact_id = run.output("scores").artifact_id
        facts = ledger.artifact(artifact_id, ArtifactKind.SCORES).summary
        numbers = [int(facts.get(name, 0)) for name in ("participants", "answers", "excluded")]
        found.setdefault(artifact_id, Counted(artifact_id, run.run_id, run.committed_at, *numbers))
    return tuple(found.values())


def artifact_of(ledger: Ledger, cache: Path, given: str) -> tuple[ArtifactRow, Artifact]:
    """Results with this id or beginning. Raises InputError for another artifact, DataIntegrityError when the bytes are
    gone."""
    row = ledger.artifact(given)
    if not any(run.stage == COUNTING for run in ledger.producers(row.artifact_id)):
        raise InputError(
            f"these are no results of a study but of kind {row.kind}", value=given, next_step="m4v study results STUDY"
        )
    return row, _present(row, cache)


def study_view(ledger: Ledger, cache: Path, given: str) -> StudyView:
    """Raises as `artifact_of`, and DataIntegrityError for damaged records."""
    row, artifact = artifact_of(ledger, cache, given)
    results = read_record(StudyResults, artifact, RESULTS)
    study = read_record(Study, _present(ledger.artifact(results.study, ArtifactKind.REPORT), cache), STUDY)
    sources = tuple(
        Source(s.name, s.samples, None if s.checkpoint.startswith(SYSTEM) else s.checkpoint) for s in study.systems
    )
    others = tuple(each for each in counted(ledger, results.study) if each.artifact_id != row.artifact_id)
    return StudyView(row, results.study, study, results, sources, tuple(map(_view, results.criteria)), others)


def _present(row: ArtifactRow, cache: Path) -> Artifact:
    artifact = Artifact(row.uri, row.artifact_id, row.kind, cache)
    if not artifact.storage.exists(MANIFEST):
        raise DataIntegrityError("its bytes are no longer in the store", value=artifact.id[:12])
    return artifact


def _view(found: CriterionResult) -> CriterionView:
    order = sorted(range(len(found.systems)), key=lambda n: -found.systems[n].strength)
    systems = [found.systems[n] for n in order]
    ends: list[float] = [0.0, *(s.strength for s in systems)]
    ends += [end for s in systems if s.strength_interval is not None for end in s.strength_interval]
    low, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return _MARGIN + (1 - 2 * _MARGIN) * (value - low) / width

    bars = tuple(
        Bar(s, place(s.strength), *((None, None) if s.strength_interval is None else map(place, s.strength_interval)))
        for s in systems
    )
    return CriterionView(found, bars, place(0.0), _preferred(found.wins, order))


def _preferred(wins: Sequence[Sequence[float]], order: Sequence[int]) -> tuple[tuple[float | None, ...], ...]:
    def share(one: int, other: int) -> float | None:
        won, lost = wins[one][other], wins[other][one]
        return won / (won + lost) if won + lost and one != other else None

    return tuple(tuple(share(one, other) for other in order) for one in order)
