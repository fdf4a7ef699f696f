"""The long lists of an impact: held as columns, their rows made as they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure.uses import CourseUses
from pipelines.exposure.verdict import Verdict
from pipelines.ledger.numbers import Numbers
from pipelines.ledger.stems import PRODUCTS
from pipelines.ledger.trained import TrainedStates

RowT = TypeVar("RowT")
BY_STRENGTH = (Verdict.CONTAINS, Verdict.DESCENDS, Verdict.SAW)
Strength = NDArray[np.int8]  # places in BY_STRENGTH


def strength(saw: NDArray[np.bool_], descends: NDArray[np.bool_]) -> Strength:
    return np.where(saw, 2, np.where(descends, 1, 0)).astype(np.int8)


class AffectedCheckpoint(NamedTuple):
    """`uses` of matched clips by the checkpoint's own stage, the first in `first_step`, the last in `last_step`.

    `inherited` counts the uses by the stages it started from; `through` is the nearest checkpoint before it that saw.
    The numbers are None where the selector matches so many samples that single uses were not counted.
    """

    artifact_id: str
    verdict: Verdict
    stage: str
    dataset_id: str | None
    steps: int
    uses: int | None
    first_step: int | None
    last_step: int | None
    inherited: int | None
    through: str | None
    init_from: str | None


class Product(NamedTuple):
    """Samples, scores or a report made from affected artifacts; `verdict` is that of the most affected of them."""

    artifact_id: str
    kind: str
    verdict: Verdict


class Rows(Sequence[RowT], Generic[RowT]):
    """A sequence whose rows are made when they are asked for, a slice of them together."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _rows(self, places: range) -> Sequence[RowT]:
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> RowT: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[RowT]: ...
    def __getitem__(self, place: int | slice) -> RowT | Sequence[RowT]:
        if isinstance(place, slice):
            return self._rows(range(len(self))[place])
        here = range(len(self))[place]  # raises IndexError
        return self._rows(range(here, here + 1))[0]

    def __iter__(self) -> Iterator[RowT]:
        return iter(self._every)

    @cached_property
    def _every(self) -> Sequence[RowT]:
        return self._rows(range(len(self)))


class AffectedCheckpoints(Rows[AffectedCheckpoint]):
    """In the order that courses and checkpoints were recorded. `through` holds rows of `states` (their number for
    none); `uses` those of courses that drew from datasets with the clips, None when they were not counted, only
    noticed."""

    def __init__(
        self,
        *,
        states: TrainedStates,
        strength: Strength,
        through: Numbers,
        uses: Mapping[int, CourseUses] | None,
    ) -> None:
        self._states, self.strength, self._through, self._uses = states, strength, through, uses

    def __len__(self) -> int:
        return len(self._states.checkpoint_ids)

    @property
    def numbers(self) -> Numbers:
        """Of the artifacts."""
        return self._states.number

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Checkpoint id -> verdict."""
        return dict(zip(self._states.checkpoint_ids, map(BY_STRENGTH.__getitem__, self.strength.tolist()), strict=True))

    def counts(self) -> dict[Verdict, int]:
        return dict(zip(BY_STRENGTH, np.bincount(self.strength, minlength=3).tolist(), strict=True))

    def _rows(self, places: range) -> list[AffectedCheckpoint]:
        at = np.array(places, dtype=np.int64)
        states = self._states
        columns = (at, self.strength[at], states.course[at], states.cursor[at], self._through[at])
        return [self._row(*facts) for facts in zip(*(column.tolist() for column in columns), strict=True)]

    def _row(self, at: int, strong: int, course: int, cursor: int, through: int) -> AffectedCheckpoint:
        states, saw, descends = self._states, BY_STRENGTH[strong] is Verdict.SAW, through < len(self)
        drawn = self._drawn(course)
        first, last = (drawn and drawn.ends(cursor)) or (None, None)
        if self._uses is None:
            uses, inherited = None if saw else 0, None if descends else 0
        else:
            uses, inherited = drawn.number(cursor) if drawn else 0, self._inherited(at)
        return AffectedCheckpoint(
            artifact_id=states.checkpoint_ids[at],
            verdict=BY_STRENGTH[strong],
            stage=states.courses[course].stage,
            dataset_id=states.courses[course].dataset_id,
            steps=cursor,
            uses=uses,
            first_step=first,
            last_step=last,
            inherited=inherited,
            through=states.checkpoint_ids[through] if descends else None,
            init_from=states.init_from[at],
        )

    def _drawn(self, course: int) -> CourseUses | None:
        return None if self._uses is None else self._uses.get(course)

    def _inherited(self, at: int) -> int:
        """Uses by the stages that a checkpoint started from, added up along its line."""
        held, line = self._sums, []
        start = int(self._states.parent[at])
        while start < len(self) and start not in held and start not in line:  # a ring, which no run can make, ends
            line.append(start)
            start = int(self._states.parent[start])
        total = held.get(start, 0)
        for row in reversed(line):
            drawn = self._drawn(int(self._states.course[row]))
            total += drawn.number(int(self._states.cursor[row])) if drawn else 0
            held[row] = total
        return total

    @cached_property
    def _sums(self) -> dict[int, int]:
        """Of rows that were asked for: uses by them and all before them."""
        return {}


class Products(Rows[Product]):
    """Samples, scores and reports, by kind, in the order that they were recorded; each has the strongest verdict on
    what it was made from. Their ids are read by `named` when rows are looked at."""

    def __init__(
        self, found: Sequence[Mapping[str, Numbers]], named: Callable[[Iterable[int]], Mapping[int, str]]
    ) -> None:
        """`found`: products by kind of what has each strength, the weakest first."""
        self._named = named
        self._kinds = {kind: _strongest([made[kind] for made in found]) for kind in PRODUCTS}
        self._numbers = np.concatenate([numbers for numbers, _ in self._kinds.values()])
        self._strength = np.concatenate([strong for _, strong in self._kinds.values()])
        self._kind = np.repeat(np.arange(len(self._kinds)), [len(numbers) for numbers, _ in self._kinds.values()])

    def __len__(self) -> int:
        return len(self._numbers)

    def counts(self) -> dict[str, int]:
        """By kind."""
        return {kind: len(numbers) for kind, (numbers, _) in self._kinds.items()}

    def _rows(self, places: range) -> list[Product]:
        at = np.array(places, dtype=np.int64)
        numbers, kinds = self._numbers[at].tolist(), list(self._kinds)
        ids = self._named(numbers) if numbers else {}
        columns = zip(numbers, self._kind[at].tolist(), self._strength[at].tolist(), strict=True)
        return [Product(ids[number], kinds[kind], BY_STRENGTH[strong]) for number, kind, strong in columns]


def _strongest(made: Sequence[Numbers]) -> tuple[Numbers, Strength]:
    """Products, ascending, each with the strongest of its stems."""
    best = np.full(max(int(numbers.max(initial=0)) for numbers in made) + 1, -1, dtype=np.int8)
    for strong, numbers in enumerate(made):
        best[numbers] = strong
    found = np.flatnonzero(best >= 0)
    return found, best[found]
