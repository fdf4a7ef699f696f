"""Uses of clips by training stages, in closed form: ranks are read once a sample, steps computed once an order."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
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
from training.timetable import Place, Timetable, draw_of

# A recorded timetable never changes, and an impact needs those of every order on an affected dataset.
_plans: WeakKeyDictionary[Ledger, dict[str, SamplingPlan]] = WeakKeyDictionary()
_MOST_PLANS = 4096

Held = Callable[[str], Iterator[SamplePlace]]  # samples in a dataset
Rank = Callable[[SamplePlace, Sequence[GroupKey]], int]  # smaller ids of these groups in the sample's dataset


class Tally:
    """Uses of some clips before one cursor. Each is computed once it is asked for: that there was any follows from the
    epochs alone where one is complete, their number takes a draw of every sample, the steps two more."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._parts: list[tuple[PlannedStream, int, Callable[[int], int]]] = []

    def add(self, stream: PlannedStream, cursor: int, draw_in: Callable[[int], int]) -> None:
        """A sample in a stream, which takes it at `draw_in` of an epoch."""
        if drawn := self._timetable.draws_before(stream, cursor):
            self._parts.append((stream, drawn, draw_in))

    @cached_property
    def any(self) -> bool:
        return any(drawn >= stream.count for stream, drawn, _ in self._parts) or self.number > 0

    @cached_property
    def number(self) -> int:
        return sum(self._numbers)

    @cached_property
    def _numbers(self) -> list[int]:
        return [self._timetable.uses_among(*part) for part in self._parts]

    @cached_property
    def ends(self) -> tuple[int, int] | None:
        """The first step that used any, and the last."""
        used = [(stream, n, draw) for (stream, _, draw), n in zip(self._parts, self._numbers, strict=True) if n]
        if not used:
            return None
        place = self._timetable.place
        first = min(place(stream, draw_in(0)).step for stream, _, draw_in in used)
        return first, max(place(stream, draw_in(n - 1)).step for stream, n, draw_in in used)


class ClipUses:
    """Which steps consumed some clips. One for a question: what it has read of the ledger does not change."""

    def __init__(self, ledger: Ledger, held: Held, rank: Rank) -> None:
        self._ledger, self._held, self._rank = ledger, held, rank
        self._plans: dict[str, SamplingPlan] = {}

    @classmethod
    def everywhere(cls, ledger: Ledger, clip_ids: Sequence[str], datasets: Collection[str]) -> ClipUses:
        """In many datasets: what they share is read and ranked once."""
        by_part, ranks = ledger.sample_parts(clip_ids), SampleRanks(ledger, datasets)
        parts_of = cache(partial(ranks.parts, of=np.array(sorted(by_part), dtype=np.int64)))

        def held(dataset_id: str) -> Iterator[SamplePlace]:
            for part in parts_of(dataset_id):
                yield from (SamplePlace(dataset_id, *place) for place in by_part[part])

        return cls(ledger, held, ranks.rank)

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
        return next(self.samples(dataset_id, clip_id), None) is not None

    def load_plans(self, rows: Iterable[StateRow | Course]) -> None:
        """Read the timetables that `places` needs for these states, in one go."""
        wanted = {r.order_id for r in rows if r.order_id is not None and self.holds(r.dataset_id)}
        self._plans |= plans_of(self._ledger, wanted - self._plans.keys())

    def plan(self, row: StateRow | Course) -> SamplingPlan:
        if row.order_id is not None and row.order_id not in self._plans:
            self._plans |= plans_of(self._ledger, [row.order_id])
        return self._plans[row.order_id or ""]

    def places(self, row: StateRow, sample: SamplePlace, cursor: int | None = None) -> list[Place]:
        """Uses of a sample by the stage of a state before `cursor` (default: the state's own)."""
        end = row.cursor if cursor is None else cursor
        rank = partial(self._rank, sample)
        return self.plan(row).places(sample.group, rank, row.seed, row.stage, end)

    def steps(self, row: StateRow, clip_id: str | None = None, cursor: int | None = None) -> list[int]:
        """Steps of all uses of the clips (or of one), sorted; a step stands as often as it used them."""
        samples = self.samples(row.dataset_id, clip_id)
        return sorted(place.step for sample in samples for place in self.places(row, sample, cursor))

    def tally(self, course: Course, cursors: Sequence[int]) -> list[Tally]:
        """Uses of all the clips before each cursor of a course."""
        plan = self.plan(course)
        found = [Tally(plan.timetable) for _ in cursors]
        for sample in self.samples(course.dataset_id):
            for stream in plan.streams_with(sample.group):
                draw_in = cache(partial(self._draw_in, course, sample, stream))
                for tally, cursor in zip(found, cursors, strict=True):
                    tally.add(stream, cursor, draw_in)
        return found

    def _draw_in(self, course: Course, sample: SamplePlace, stream: PlannedStream, epoch: int) -> int:
        rank = self._rank(sample, self.plan(course).keys(stream))
        return draw_of(stream, rank, course.seed, course.stage, epoch)

    def first_step(self, course: Course, cursor: int, enough: int) -> float:
        """The first step that used any of the clips, or some early one before `enough`; infinite when none before
        `cursor`."""
        first = math.inf
        plan = self.plan(course)
        for sample in self.samples(course.dataset_id):
            rank = partial(self._rank, sample)
            places = plan.places(sample.group, rank, course.seed, course.stage, cursor)
            first = min(first, places[0].step if places else math.inf)
            if first < enough:
                break
        return first

    def most_draws(self, course: Course, cursors: int, enough: int) -> int:
        """How many draws `tally` would compute: not more than this, unless it is more than `enough`."""
        plan, streams = self.plan(course), 0
        for sample in self.samples(course.dataset_id):
            streams += len(plan.streams_with(sample.group))
            if streams > enough:
                break
        return streams * (1 + 2 * cursors)


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
    for order_id, order in ledger.data_orders(i for i in wanted if i not in plans).items():
        config = OrderConfig.model_validate(order.config)
        plans[order_id] = plan_on(ledger, order.dataset_id, config, "training")
    return plans


def plan_on(ledger: Ledger, dataset_id: str, order: OrderConfig, stage: str) -> SamplingPlan:
    """The timetable of an order on a dataset; raises InputError when the dataset is not in the clip index."""
    groups = [SampleGroup(*group, samples) for group, samples in ledger.groups_of(dataset_id)]
    return SamplingPlan.of(groups, order, stage)
