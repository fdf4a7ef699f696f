"""Uses of clips by training stages, in closed form: ranks are read once a sample, steps computed once an order."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from weakref import WeakKeyDictionary

import numpy as np

from pipelines.ledger import Ledger
from pipelines.ledger.courses import Course
from pipelines.ledger.exposures import StateRow
from pipelines.ledger.sample_ranks import GroupKey, SamplePlace, SampleRanks
from pipelines.membership import SampleGroup as MemberGroup
from training.config import OrderConfig
from training.samples import SampleGroup
from training.sampling import PlannedStream, SamplingPlan
from training.split import is_held_out
from training.timetable import Place, Timetable, draw_of

# A recorded timetable never changes, and an impact needs those of every order on an affected dataset.
_plans: WeakKeyDictionary[Ledger, dict[str, SamplingPlan]] = WeakKeyDictionary()
_MOST_PLANS = 4096

Held = Callable[[str], Iterator[SamplePlace]]  # samples in a dataset
Rank = Callable[[SamplePlace, Sequence[GroupKey]], int]  # smaller ids of these groups in the sample's dataset
Expect = Callable[[str, Sequence[GroupKey]], None]  # a sample's id and groups


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A sample, and a stream that takes it."""

    sample: SamplePlace
    stream: PlannedStream
    keys: tuple[GroupKey, ...]  # of the stream's groups


class CourseUses:
    """Uses of some clips by one course. What is not asked for is not computed: that there was any by a cursor follows
    from the epochs alone where one is complete, their number takes a draw of every sample, the steps two more."""

    def __init__(self, timetable: Timetable, parts: Sequence[Part], draw_in: Callable[[Part, int], int]) -> None:
        """`parts`: every sample with each stream that takes it; `draw_in` says at which draw of an epoch."""
        self._timetable, self._parts, self._draw_in = timetable, parts, draw_in
        self._numbers: dict[int, list[int]] = {}
        self._draws: dict[tuple[Part, int], int] = {}

    def first_of(self, cursors: Sequence[int]) -> int | None:
        """The first of some ascending cursors that has a use before it."""
        place = bisect.bisect_left(cursors, True, key=self._any)
        return cursors[place] if place < len(cursors) else None

    def _any(self, cursor: int) -> bool:
        drawn = [self._timetable.draws_before(part.stream, cursor) for part in self._parts]
        for part, count in zip(self._parts, drawn, strict=True):
            if count >= part.stream.count:
                return True
        return any(self._used(part, count) for part, count in zip(self._parts, drawn, strict=True))

    def _used(self, part: Part, drawn: int) -> int:
        return self._timetable.uses_among(part.stream, drawn, partial(self._draw, part)) if drawn else 0

    def _draw(self, part: Part, epoch: int) -> int:
        if (part, epoch) not in self._draws:
            self._draws[part, epoch] = self._draw_in(part, epoch)
        return self._draws[part, epoch]

    def number(self, cursor: int) -> int:
        """Of uses before a cursor."""
        return sum(self._counted(cursor))

    def ends(self, cursor: int) -> tuple[int, int] | None:
        """The first step before a cursor that used any, and the last."""
        used = [(part, uses) for part, uses in zip(self._parts, self._counted(cursor), strict=True) if uses]
        place, draw = self._timetable.place, self._draw
        steps = [place(part.stream, draw(part, n)).step for part, uses in used for n in (0, uses - 1)]
        return (min(steps), max(steps)) if steps else None

    def _counted(self, cursor: int) -> list[int]:
        """Uses before a cursor of each part."""
        if cursor not in self._numbers:
            drawn = (self._timetable.draws_before(part.stream, cursor) for part in self._parts)
            self._numbers[cursor] = [self._used(part, count) for part, count in zip(self._parts, drawn, strict=True)]
        return self._numbers[cursor]


class ClipUses:
    """Which steps consumed some clips. One for a question: what it has read of the ledger does not change."""

    def __init__(self, ledger: Ledger, held: Held, rank: Rank, expect: Expect | None = None) -> None:
        """`expect` is told what `rank` may be asked for, if it wants to know."""
        self._ledger, self._held, self._rank, self._expect = ledger, held, rank, expect
        self._plans: dict[str, SamplingPlan] = {}
        self._parts: dict[str | None, list[Part]] = {}  # by data order
        self._held_any: dict[str, bool] = {}

    @classmethod
    def everywhere(cls, ledger: Ledger, clip_ids: Sequence[str], datasets: Collection[str]) -> ClipUses:
        """In many datasets: what they share is read and ranked once."""
        names = ledger.group_names()
        by_part, ranks = ledger.sample_parts(clip_ids, names), SampleRanks(ledger, datasets, names)
        parts_of = cache(partial(ranks.parts, of=np.array(sorted(by_part), dtype=np.int64)))

        def held(dataset_id: str) -> Iterator[SamplePlace]:
            for part in parts_of(dataset_id):
                yield from (SamplePlace(dataset_id, *place) for place in by_part[part])

        return cls(ledger, held, ranks.rank, ranks.expect)

    @classmethod
    def within(cls, ledger: Ledger, clip_ids: Sequence[str], datasets: Iterable[str]) -> ClipUses:
        """In a few datasets. Raises InputError for one that is not in the clip index."""
        samples = {d: [SamplePlace(d, *found) for found in ledger.samples_of(d, clip_ids)] for d in set(datasets)}

        def rank(sample: SamplePlace, groups: Sequence[GroupKey]) -> int:
            return ledger.rank_in_groups(sample.dataset_id, [MemberGroup(*g) for g in groups], sample.sample_id)

        return cls(ledger, lambda dataset_id: iter(samples.get(dataset_id, ())), rank)

    def samples(self, dataset_id: str | None, clip_id: str | None = None) -> Iterator[SamplePlace]:
        """Samples of the clips (or of one) in a dataset."""
        held = iter(()) if dataset_id is None else self._held(dataset_id)
        return held if clip_id is None else (s for s in held if s.clip_id == clip_id)

    def holds(self, dataset_id: str | None, clip_id: str | None = None) -> bool:
        """Whether a dataset has a sample of the clips (or of one)."""
        if dataset_id is None or clip_id is not None:
            return next(self.samples(dataset_id, clip_id), None) is not None
        if dataset_id not in self._held_any:
            self._held_any[dataset_id] = next(self.samples(dataset_id), None) is not None
        return self._held_any[dataset_id]

    def load_plans(self, rows: Iterable[StateRow | Course]) -> None:
        """Read the timetables that `places` needs for these states, in one go."""
        wanted = {r.order_id for r in rows if r.order_id is not None and self.holds(r.dataset_id)}
        self._plans |= plans_of(self._ledger, wanted - self._plans.keys())

    def plan(self, row: StateRow | Course) -> SamplingPlan:
        if row.order_id is not None and row.order_id not in self._plans:
            self._plans |= plans_of(self._ledger, [row.order_id])
        return self._plans[row.order_id or ""]

    def _trained(self, row: StateRow | Course) -> Iterator[SamplePlace]:
        """Samples of the clips in the dataset of a state, without clips that its order holds out of training."""
        held_out = self.plan(row).held_out
        samples = self.samples(row.dataset_id)
        return (s for s in samples if not is_held_out(s.clip_id, held_out)) if held_out else samples

    def places(self, row: StateRow, sample: SamplePlace, cursor: int | None = None) -> list[Place]:
        """Uses of a sample by the stage of a state before `cursor` (default: the state's own)."""
        held_out = self.plan(row).held_out
        if held_out and is_held_out(sample.clip_id, held_out):
            return []
        end = row.cursor if cursor is None else cursor
        rank = partial(self._rank, sample)
        return self.plan(row).places(sample.group, rank, row.seed, row.stage, end)

    def steps(self, row: StateRow, clip_id: str | None = None, cursor: int | None = None) -> list[int]:
        """Steps of all uses of the clips (or of one), sorted; a step stands as often as it used them."""
        samples = self.samples(row.dataset_id, clip_id)
        return sorted(place.step for sample in samples for place in self.places(row, sample, cursor))

    def of_course(self, course: Course) -> CourseUses:
        """Uses of all the clips by a course."""
        plan = self.plan(course)
        if course.order_id not in self._parts:
            self._parts[course.order_id] = parts = [
                Part(sample, stream, plan.keys(stream))
                for sample in self._trained(course)
                for stream in plan.streams_with(sample.group)
            ]
            if self._expect is not None:
                for part in parts:
                    self._expect(part.sample.sample_id, part.keys)
        return CourseUses(plan.timetable, self._parts[course.order_id], partial(self._draw_in, course))

    def _draw_in(self, course: Course, part: Part, epoch: int) -> int:
        return draw_of(part.stream, self._rank(part.sample, part.keys), course.seed, course.stage, epoch)

    def first_step(self, course: Course, cursor: int, enough: int) -> float:
        """The first step that used any of the clips, or some early one before `enough`; infinite when none before
        `cursor`."""
        first = math.inf
        plan = self.plan(course)
        for sample in self._trained(course):
            rank = partial(self._rank, sample)
            places = plan.places(sample.group, rank, course.seed, course.stage, cursor)
            first = min(first, places[0].step if places else math.inf)
            if first < enough:
                break
        return first

    def most_draws(self, courses: Iterable[tuple[Course, int]], enough: int) -> int:
        """How many draws the numbers and ends of courses, each with a number of cursors, take: not more than this,
        unless it is more than `enough`."""
        draws, of_order = 0, dict[str | None, int]()
        for course, cursors in courses:
            if course.order_id not in of_order:
                of_order[course.order_id] = self._takers(course, enough)
            draws += of_order[course.order_id] * (1 + 2 * cursors)
            if draws > enough:
                break
        return draws

    def _takers(self, course: Course, enough: int) -> int:
        """Streams that take a sample, over all samples."""
        plan, takers = self.plan(course), 0
        for sample in self._trained(course):
            takers += len(plan.streams_with(sample.group))
            if takers > enough:
                break
        return takers


def plans_of(ledger: Ledger, order_ids: Iterable[str]) -> dict[str, SamplingPlan]:
    """Timetables of data orders; one that is not recorded is made from the sizes of the dataset's groups.

    Raises InputError for such a one whose dataset is not in the clip index.
    """
    known = _plans.setdefault(ledger, {})
    wanted = sorted(set(order_ids))
    if missing := [order_id for order_id in wanted if order_id not in known]:
        if len(known) > _MOST_PLANS:
            known.clear()
        known |= {order_id: SamplingPlan.from_json(plan) for order_id, plan in ledger.data_plans(missing).items()}
    plans = {order_id: known[order_id] for order_id in wanted if order_id in known}
    unplanned = [order_id for order_id in wanted if order_id not in plans]
    for order_id, order in (ledger.data_orders(unplanned) if unplanned else {}).items():
        config = OrderConfig.model_validate(order.config)
        plans[order_id] = plan_on(ledger, order.dataset_id, config, "training")
    return plans


def plan_on(ledger: Ledger, dataset_id: str, order: OrderConfig, stage: str) -> SamplingPlan:
    """The timetable of an order on a dataset; raises InputError when the dataset is not in the clip index."""
    groups = [SampleGroup(*group, samples) for group, samples in ledger.groups_of(dataset_id)]
    return SamplingPlan.of(groups, order, stage)
