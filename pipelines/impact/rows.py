"""The long lists of an impact: held as columns, their rows made as they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure.uses import Tally
from pipelines.exposure.verdict import Verdict
from pipelines.ledger.numbers import Numbers, unpack
from pipelines.ledger.reach import StemProducts
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
    """In the order that courses and checkpoints were recorded. `tally` holds places in `tallies`, `through` rows of
    `states` (their number for none)."""

    def __init__(
        self,
        *,
        states: TrainedStates,
        strength: Strength,
        uses: Numbers | None,
        inherited: Numbers | None,
        through: Numbers,
        tally: Numbers,
        tallies: Sequence[Tally | None],
    ) -> None:
        self._states, self.strength, self._through = states, strength, through
        self._uses, self._inherited = uses, inherited
        self._tally, self._tallies = tally, tallies
        self._ends: dict[int, tuple[int | None, int | None]] = {}

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
        return [self._row(*facts) for facts in self._facts(places)]

    def _facts(self, places: range) -> Iterable[tuple[Any, ...]]:
        at = np.array(places, dtype=np.int64)
        states, none = self._states, [None] * len(at)
        columns = (at, self.strength[at], states.course[at], states.cursor[at], self._tally[at], self._through[at])
        uses = none if self._uses is None else self._uses[at].tolist()
        inherited = none if self._inherited is None else self._inherited[at].tolist()
        return zip(*(column.tolist() for column in columns), uses, inherited, strict=True)

    def _row(
        self, at: int, strong: int, course: int, cursor: int, tally: int, through: int, uses: int | None,
        inherited: int | None,
    ) -> AffectedCheckpoint:  # fmt: skip
        states = self._states
        saw = BY_STRENGTH[strong] is Verdict.SAW
        descends = through < len(self)
        if self._uses is None:  # noticed, not counted
            uses, inherited = None if saw else 0, None if descends else 0
        first, last = self._steps(tally) if saw else (None, None)
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

    def _steps(self, number: int) -> tuple[int | None, int | None]:
        if number not in self._ends:
            tally = self._tallies[number]
            self._ends[number] = (None, None) if tally is None else tally.ends()
        return self._ends[number]


class Products(Rows[Product]):
    """Samples, scores and reports, by kind, in the order that they were recorded; each has the strongest verdict on
    what it was made from. Their ids are read by `named` when rows are looked at."""

    def __init__(
        self, found: StemProducts, strength: Strength, named: Callable[[Iterable[int]], Mapping[int, str]]
    ) -> None:
        self._named = named
        strongest = np.zeros(int(found.asked.max(initial=0)) + 1, dtype=np.int8)
        np.maximum.at(strongest, found.asked, strength)
        self._kinds: dict[str, tuple[Numbers, Strength]] = {
            kind: _strongest(strongest[found.found], packed) for kind, packed in found.packed.items()
        }
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


def _strongest(stems: Strength, packed: Sequence[bytes]) -> tuple[Numbers, Strength]:
    """Products, ascending, each with the strongest of its stems."""
    numbers = unpack(b"".join(packed))
    own = np.repeat(stems, [len(held) // 4 for held in packed])
    best = np.full(int(numbers.max(initial=0)) + 1, -1, dtype=np.int8)
    for strong in range(len(BY_STRENGTH)):  # the strongest last
        best[numbers[own == strong]] = strong
    found = np.flatnonzero(best >= 0)
    return found, best[found]
