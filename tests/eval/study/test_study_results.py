"""Results against known truth, and what becomes of ties, partial, revoked and careless participants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from study_house import SYSTEMS, answer_of, snapshot_of, study_of, truthful

from eval.study.config import ResultsConfig
from eval.study.design import Task, participant_id, tasks_of
from eval.study.records import Answer, CriterionResult, Study, StudyResults
from eval.study.results import compute

ORDERS = {
    "aesthetic": SYSTEMS,
    "motion": tuple(reversed(SYSTEMS)),
    "semantic": ("beta", "ours", "delta", "alpha", "gamma"),
}
Said = dict[str, tuple[int, ...]]


def config(**values: object) -> ResultsConfig:
    return ResultsConfig.model_validate({"answers": "a" * 64, "resamples": 200, **values})


def answers(
    study: Study, people: int, say: Callable[[Study, Task], Said] | None = None, first: int = 1
) -> list[Answer]:
    say = say or (lambda study, task: truthful(study, task, ORDERS))
    names = [participant_id(n) for n in range(first, first + people)]
    return [answer_of(name, task, say(study, task)) for name in names for task in tasks_of(study, name)]


def always_first(study: Study, task: Task) -> Said:
    said = tuple(range(1, len(task.shown) + 1)) if study.mode == "rank" else (1,)
    return {c.key: said for c in study.criteria}


def by(results: StudyResults, key: str) -> CriterionResult:
    return next(c for c in results.criteria if c.criterion == key)


def order(criterion: CriterionResult) -> tuple[str, ...]:
    return tuple(s.system for s in sorted(criterion.systems, key=lambda s: -s.strength))


@pytest.mark.parametrize("mode", ["rank", "pairwise"])
def test_people_of_one_mind_give_their_order_back(mode: str) -> None:
    study = study_of(prompts=3, mode=mode)
    results = compute(study, snapshot_of(answers(study, 6)), config())
    assert (results.participants, results.complete, results.invited) == (6, 6, 20)
    for key, truth in ORDERS.items():
        found = by(results, key)
        assert order(found) == truth
        assert found.krippendorff_alpha == pytest.approx(1.0)
        assert found.kendall_w == (pytest.approx(1.0) if mode == "rank" else None)
        ranks = {s.system: s.mean_rank for s in found.systems}
        assert [ranks[name] for name in truth] == ([1, 2, 3, 4, 5] if mode == "rank" else [None] * 5)
        rates = {s.system: s.win_rate for s in found.systems}
        assert [rates[name] for name in truth] == [1.0, 0.75, 0.5, 0.25, 0.0]
        assert sum(s.strength for s in found.systems) == pytest.approx(0, abs=1e-5)


def test_noisy_people_give_the_truth_within_the_interval() -> None:
    truth = np.array([1.0, 0.5, 0.0, -0.5, -1.0])
    study, rng = study_of(prompts=30, criteria=1, mode="pairwise", tasks=60), np.random.default_rng(5)

    def noisy(study: Study, task: Task) -> Said:
        one, other = (truth[SYSTEMS.index(name)] for name in task.shown)
        return {"aesthetic": (1 if rng.random() < 1 / (1 + np.exp(other - one)) else 2,)}

    found = by(compute(study, snapshot_of(answers(study, 30, noisy)), config()), "aesthetic")
    for system, strength in zip(found.systems, truth, strict=True):
        assert system.strength_interval is not None
        low, high = system.strength_interval
        assert low - 0.1 < strength < high + 0.1
        assert 0.1 < high - low < 0.6
    assert found.krippendorff_alpha is not None
    assert 0.0 < found.krippendorff_alpha < 0.5


def test_ties_share_ranks_and_are_half_a_win() -> None:
    study = study_of(prompts=1, criteria=1, ties=True)
    task = tasks_of(study, "p001")[0]
    found = by(
        compute(study, snapshot_of([answer_of("p001", task, {"aesthetic": (1, 1, 2, 3, 3)})]), config()), "aesthetic"
    )
    ranks = {s.system: s.mean_rank for s in found.systems}
    assert [ranks[name] for name in task.shown] == [1.5, 1.5, 3.0, 4.5, 4.5]
    one, other = (SYSTEMS.index(name) for name in task.shown[:2])
    assert found.wins[one][other] == found.wins[other][one] == 0.5
    assert all(s.strength_interval is None for s in found.systems)  # one person is no sample of people


def test_a_partial_participant_counts_with_what_they_said() -> None:
    study = study_of(prompts=4)
    everything = answers(study, 2)
    results = compute(study, snapshot_of(everything[:-2]), config())
    assert (results.participants, results.complete, results.answers) == (2, 1, 6)
    assert by(results, "aesthetic").systems[0].comparisons == 6 * 4


@pytest.mark.parametrize(("mode", "prompts"), [("rank", 6), ("pairwise", 2)])
def test_who_always_takes_the_first_is_not_counted_and_named(mode: str, prompts: int) -> None:
    study = study_of(prompts=prompts, mode=mode)
    given = answers(study, 5) + answers(study, 1, always_first, first=6)
    results = compute(study, snapshot_of(given), config())
    assert [e.participant for e in results.excluded] == ["p006"]
    assert results.excluded[0].reason.startswith("chose place 1 in all of ")
    assert results.participants == 5
    assert order(by(results, "aesthetic")) == SYSTEMS
    assert compute(study, snapshot_of(given), config(keep_all=True)).participants == 6


def test_a_few_answers_of_one_place_are_no_proof() -> None:
    study = study_of(prompts=5)
    results = compute(study, snapshot_of(answers(study, 1, always_first)), config())
    assert results.participants == 1  # 5^-4 is above one in a thousand


def test_revoked_participants_do_not_count() -> None:
    study = study_of(prompts=2)
    results = compute(study, snapshot_of(answers(study, 3), revoked=("p002",)), config(keep_all=True))
    assert [(e.participant, e.reason, e.answers) for e in results.excluded] == [
        ("p002", "the invitation was revoked", 2)
    ]  # fmt: skip
    assert results.participants == 2


def test_no_answer_yet() -> None:
    results = compute(study_of(), snapshot_of([]), config())
    assert results.participants == 0
    first = results.criteria[0].systems[0]
    assert (first.mean_rank, first.win_rate, first.strength, first.comparisons) == (None, None, 0.0, 0)


def test_results_do_not_depend_on_when_answers_came() -> None:
    study = study_of(prompts=3)
    given = answers(study, 6)
    assert compute(study, snapshot_of(given), config()) == compute(study, snapshot_of(given[::-1]), config())
