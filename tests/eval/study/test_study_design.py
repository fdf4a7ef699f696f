"""Who sees what: blind, repeatable, balanced; and which answers are whole."""

from __future__ import annotations

from collections import Counter

import pytest
from study_house import SYSTEMS, study_of

from eval.study.design import check_answer, participant_id, tasks_of
from m4v.core.errors import InputError


def test_an_order_depends_on_study_and_participant_alone() -> None:
    study = study_of(prompts=6)
    assert tasks_of(study, "p001") == tasks_of(study, "p001")
    assert tasks_of(study, "p001") != tasks_of(study, "p002")
    assert tasks_of(study, "p001") != tasks_of(study.model_copy(update={"seed": 2}), "p001")
    assert sorted(t.prompt for t in tasks_of(study, "p001")) == list(range(6))
    assert all(sorted(t.shown) == sorted(SYSTEMS) for t in tasks_of(study, "p001"))


def test_every_system_stands_in_every_place_about_equally_often() -> None:
    study = study_of(prompts=50)
    firsts = Counter(t.shown[0] for n in range(1, 21) for t in tasks_of(study, participant_id(n)))
    assert sum(firsts.values()) == 1000
    assert all(150 < count < 250 for count in firsts.values())  # 200 each; four standard errors are 50


def test_fewer_tasks_cover_all_pairs_equally_over_participants() -> None:
    study = study_of(prompts=4, mode="pairwise", tasks=8)  # 40 pairs
    people = [tasks_of(study, participant_id(n)) for n in range(1, 11)]
    assert all(len({t.id for t in tasks}) == 8 for tasks in people)
    assert set(Counter(t.id for tasks in people for t in tasks).values()) == {2}
    assert all(len(t.shown) == 2 for t in people[0])


def test_an_id_that_is_none() -> None:
    with pytest.raises(InputError, match="no participant"):
        tasks_of(study_of(), "somebody")


@pytest.mark.parametrize(
    ("ranks", "ties", "words"),
    [
        ((1, 2, 3, 4, 5), False, None),
        ((1, 1, 2, 3, 4), False, "give each rank to one video only"),
        ((1, 1, 2, 3, 4), True, None),
        ((1, 2, 3, 4), True, "give every video a rank from 1 to 5"),
        ((0, 1, 2, 3, 4), True, "give every video a rank"),
        ((1, 2, 3, 4, 6), True, "give every video a rank"),
    ],
)  # fmt: skip
def test_ranks(ranks: tuple[int, ...], ties: bool, words: str | None) -> None:
    study = study_of(criteria=1, ties=ties)
    task = tasks_of(study, "p001")[0]
    if words is None:
        assert check_answer(study, task, {"aesthetic": ranks}) == {"aesthetic": ranks}
    else:
        with pytest.raises(InputError, match=f"Aesthetic quality: {words}"):
            check_answer(study, task, {"aesthetic": ranks})


def test_pairs_and_no_preference() -> None:
    forced, free = study_of(mode="pairwise", criteria=1), study_of(mode="pairwise", criteria=1, ties=True)
    task = tasks_of(forced, "p001")[0]
    assert check_answer(forced, task, {"aesthetic": [2]}) == {"aesthetic": (2,)}
    assert check_answer(free, task, {"aesthetic": [0]}) == {"aesthetic": (0,)}
    for wrong in ([0], [3], [], [1, 2]):
        with pytest.raises(InputError, match="choose one of the two"):
            check_answer(forced, task, {"aesthetic": wrong})
