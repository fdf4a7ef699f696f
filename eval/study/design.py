"""Who sees what in which order: a pure function of the study and the participant; and which answers are whole."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from eval.study.records import Study
from m4v.core.errors import InputError
from m4v.core.rng import Permutation, generator

_PARTICIPANT = re.compile(r"p(\d{3,7})")


@dataclass(frozen=True)
class Task:
    """One page: a prompt, and the systems in the order in which they are shown."""

    id: str
    prompt: int
    shown: tuple[str, ...]


def participant_id(number: int) -> str:
    """`p001`, `p002`, …"""
    return f"p{number:03d}"


@lru_cache(maxsize=256)
def _units(systems: int, prompts: int, mode: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    everything = tuple(range(systems))
    groups = [everything] if mode == "rank" else list(itertools.combinations(everything, 2))
    return tuple((prompt, group) for prompt in range(prompts) for group in groups)


def tasks_of(study: Study, participant: str) -> tuple[Task, ...]:
    """The participant's tasks in their order. With fewer tasks than there are, participants who follow each other take
    parts that follow each other of one drawn order, so that all are seen equally often.

    Raises InputError for what is no participant's id.
    """
    match = _PARTICIPANT.fullmatch(participant)
    if match is None:
        raise InputError("this is no participant's id", value=participant)
    units = _units(len(study.systems), len(study.prompts), study.mode)
    count = min(study.tasks or len(units), len(units))
    first = (int(match[1]) - 1) * count
    drawn = Permutation(len(units), study.seed, "study", "units")
    own = [drawn((first + n) % len(units)) for n in range(count)]
    order = generator(study.seed, "study", participant, "order").permutation(count)
    return tuple(_task(study, participant, *units[own[n]]) for n in order)


def _task(study: Study, participant: str, prompt: int, group: tuple[int, ...]) -> Task:
    name = "-".join(str(n) for n in (prompt, *(group if study.mode == "pairwise" else ())))
    places = generator(study.seed, "study", participant, "shown", name).permutation(len(group))
    return Task(name, prompt, tuple(study.systems[group[n]].name for n in places))


def check_answer(study: Study, task: Task, said: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The answer as it is stored; raises InputError, in words for the participant, unless it is whole."""
    return {c.key: _check_one(study, task, c.title, said.get(c.key, ())) for c in study.criteria}


def _check_one(study: Study, task: Task, title: str, said: Sequence[int]) -> tuple[int, ...]:
    if study.mode == "pairwise":
        if len(said) != 1 or said[0] not in ((0, 1, 2) if study.ties else (1, 2)):
            raise InputError(f"{title}: choose one of the two videos")
        return tuple(said)
    count = len(task.shown)
    if len(said) != count or any(not 1 <= rank <= count for rank in said):
        raise InputError(f"{title}: give every video a rank from 1 to {count}")
    if not study.ties and len(set(said)) != count:
        raise InputError(f"{title}: give each rank to one video only")
    return tuple(said)
