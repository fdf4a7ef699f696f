"""From a snapshot of answers to mean ranks, win rates, strengths and agreement, with intervals over participants."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.study.config import Criterion, ResultsConfig
from eval.study.design import tasks_of
from eval.study.records import (
    Answer,
    CriterionResult,
    Excluded,
    Snapshot,
    Study,
    StudyResults,
    SystemResult,
)
from eval.study.statistics import Floats, bradley_terry, kendall_w, krippendorff_alpha, mid_ranks
from m4v.core.rng import generator

MIN_PARTICIPANTS = 5  # below it an interval over participants says nothing
UNLIKELY = 0.001  # chance at which always the same place is no coincidence any more
_DECIMALS = 6


def compute(study: Study, snapshot: Snapshot, config: ResultsConfig) -> StudyResults:
    """Participants without an answer are not counted, partial ones with what they answered."""
    by_participant: dict[str, list[Answer]] = defaultdict(list)
    for answer in snapshot.answers:
        by_participant[answer.participant].append(answer)
    excluded = []
    for name in sorted(by_participant):
        reason = _why_not(by_participant[name], name in snapshot.revoked, config.keep_all)
        if reason is not None:
            excluded.append(Excluded(participant=name, reason=reason, answers=len(by_participant.pop(name))))
    counted = [by_participant[name] for name in sorted(by_participant)]
    complete = sum(len(own) == len(tasks_of(study, own[0].participant)) for own in counted)
    return StudyResults(
        study=snapshot.study,
        mode=study.mode,
        invited=snapshot.invited,
        participants=len(counted),
        complete=complete,
        answers=sum(map(len, counted)),
        confidence=config.confidence,
        excluded=tuple(excluded),
        criteria=tuple(_criterion(study, criterion, counted, config) for criterion in study.criteria),
    )


def _why_not(answers: Sequence[Answer], revoked: bool, keep_all: bool) -> str | None:
    if revoked:
        return "the invitation was revoked"
    if keep_all:
        return None
    best = {frozenset(_best(answer, said)) for answer in answers for said in answer.said.values()}
    places = len(answers[0].shown)
    # Places are drawn anew for every task: honest judges hit the same one with this chance.
    if len(best) == 1 and len(next(iter(best))) == 1 and places ** (1.0 - len(answers)) < UNLIKELY:
        return f"chose place {next(iter(next(iter(best)))) + 1} in all of {len(answers)} tasks"
    return None


def _best(answer: Answer, said: tuple[int, ...]) -> list[int]:
    """Places that were preferred."""
    if len(said) == 1:
        return [said[0] - 1] if said[0] else [0, 1]
    return [place for place, rank in enumerate(said) if rank == min(said)]


def ranks_of(answer: Answer, said: tuple[int, ...]) -> dict[str, float]:
    """Mid-rank of each system that was shown, 1 the best; of a pair 1 and 2, or 1.5 twice."""
    if len(said) == 1:
        first = {0: 1.5, 1: 1.0, 2: 2.0}[said[0]]
        return dict(zip(answer.shown, (first, 3.0 - first), strict=True))
    return dict(zip(answer.shown, map(float, mid_ranks(said)), strict=True))


@dataclass
class _Tally:
    """Of one criterion, by participant: wins (participant, i, j), sums and counts of ranks (participant, i)."""

    wins: Floats
    sums: Floats
    counts: Floats
    by_task: dict[str, list[Floats]]
    units: dict[tuple[str, int], list[float]]


def _tally(study: Study, key: str, counted: Sequence[Sequence[Answer]]) -> _Tally:
    size = len(study.systems)
    index = {name: n for n, name in enumerate(study.names)}
    shape = (len(counted), size)
    tally = _Tally(np.zeros((*shape, size)), np.zeros(shape), np.zeros(shape), defaultdict(list), defaultdict(list))
    for number, answers in enumerate(counted):
        for answer in answers:
            ranks = {index[name]: rank for name, rank in ranks_of(answer, answer.said[key]).items()}
            for system, rank in ranks.items():
                tally.sums[number, system] += rank
                tally.counts[number, system] += 1
            for one, other in itertools.permutations(ranks, 2):
                tally.wins[number, one, other] += 0.5 * (1 + np.sign(ranks[other] - ranks[one]))
            order = sorted(ranks)
            tally.by_task[answer.task].append(np.array([ranks[n] for n in order]))
            # A pair is counted from both sides, so that which system is written first says nothing.
            for system in order:
                tally.units[answer.task, system].append(ranks[system])
    return tally


def _criterion(
    study: Study, criterion: Criterion, counted: Sequence[Sequence[Answer]], config: ResultsConfig
) -> CriterionResult:
    tally = _tally(study, criterion.key, counted)
    agreement = [w for w in (kendall_w(np.stack(ranks)) for ranks in tally.by_task.values()) if w is not None]
    alpha = krippendorff_alpha(list(tally.units.values()))
    ranked = study.mode == "rank"
    wins = tally.wins.sum(axis=0)
    return CriterionResult(
        criterion=criterion.key,
        title=criterion.title,
        systems=_systems(study, criterion.key, tally, config),
        wins=tuple(tuple(float(v) for v in row) for row in wins),
        kendall_w=round(float(np.mean(agreement)), _DECIMALS) if ranked and agreement else None,
        krippendorff_alpha=None if alpha is None else round(alpha, _DECIMALS),
    )


def _systems(study: Study, key: str, tally: _Tally, config: ResultsConfig) -> tuple[SystemResult, ...]:
    people = len(tally.wins)
    once = np.ones((1, people))
    found = [measure[0] for measure in _measures(tally, once)]
    bounds: list[Floats] | None = None
    if people >= MIN_PARTICIPANTS:
        rng = generator(0, "study", "bootstrap", key)
        drawn = rng.multinomial(people, np.full(people, 1 / people), size=config.resamples).astype(np.float64)
        tail = (1 - config.confidence) / 2
        bounds = [np.nanquantile(measure, [tail, 1 - tail], axis=0) for measure in _measures(tally, drawn)]
    ranked = study.mode == "rank"

    def value(measure: int, system: int) -> float | None:
        number = float(found[measure][system])
        return round(number, _DECIMALS) if np.isfinite(number) else None

    def interval(measure: int, system: int) -> tuple[float, float] | None:
        if bounds is None or not np.isfinite(bounds[measure][:, system]).all():
            return None
        low, high = bounds[measure][:, system]
        return round(float(low), _DECIMALS), round(float(high), _DECIMALS)

    return tuple(
        SystemResult(
            system=name,
            comparisons=int(tally.wins[:, n, :].sum() + tally.wins[:, :, n].sum()),
            mean_rank=value(0, n) if ranked else None,
            mean_rank_interval=interval(0, n) if ranked else None,
            win_rate=value(1, n),
            win_rate_interval=interval(1, n),
            strength=round(float(found[2][n]), _DECIMALS),
            strength_interval=interval(2, n),
        )
        for n, name in enumerate(study.names)
    )


def _measures(tally: _Tally, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean rank, win rate and strength (draw, system) of weighted participants."""
    wins = np.einsum("bp,pij->bij", weights, tally.wins)
    won, lost = wins.sum(axis=2), wins.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rank = (weights @ tally.sums) / (weights @ tally.counts)
        rate = won / (won + lost)
    return rank, rate, bradley_terry(wins)
