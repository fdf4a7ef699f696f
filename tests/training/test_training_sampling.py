"""The sampling plan: places of a sample from group sizes and its rank alone equal those of the whole order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4v.core.errors import ConfigError
from training.config import MixtureEntry, OrderConfig
from training.order import DataOrder
from training.samples import SampleRow, Samples
from training.sampling import GroupKey, SamplingPlan
from training.timetable import draw_of

SIZES = ((1, 8, 8), (2, 8, 8), (3, 8, 16), (8, 16, 16), (20, 16, 16), (20, 16, 24))


@st.composite
def datasets(draw: st.DrawFn) -> list[SampleRow]:
    rows = []
    for number in range(draw(st.integers(2, 30))):
        t, h, w = draw(st.sampled_from(SIZES))
        # Ids out of the order of groups, so that the ranks of a stream's groups mix.
        identity = f"{number * 7919 % 9973:04d}"
        rows.append(
            SampleRow(identity, draw(st.sampled_from(("film", "street"))), "image" if t == 1 else "video", t, h, w)
        )
    return [*rows, SampleRow("9999", "film", "video", 20, 16, 16)]


orders = st.builds(
    OrderConfig,
    frames=st.sampled_from((1, 9, 57, 121)),
    min_frames=st.just(9),
    tokens_per_pack=st.sampled_from((64, 300)),
    packs=st.sampled_from((2, 4)),
    image_every=st.sampled_from((0, 2)),
    mixture=st.sampled_from(
        (
            (MixtureEntry(name="all"),),
            # A sample may be drawn for two entries.
            (MixtureEntry(name="film", sources=("film",), weight=2), MixtureEntry(name="all", sources=("*",))),
        )
    ),
)


def plan_of(rows: Sequence[SampleRow], config: OrderConfig) -> SamplingPlan:
    """A plan that was written down and read back."""
    groups, _ = Samples.of_rows(rows).groups()
    return SamplingPlan.from_json(json.loads(json.dumps(SamplingPlan.of(groups, config, "stage").to_json())))


@settings(max_examples=30)
@given(datasets(), orders, st.integers(0, 2**40), st.integers(0, 40))
def test_places_draws_and_distinct_samples_are_those_of_the_order(
    rows: list[SampleRow], config: OrderConfig, seed: int, cursor: int
) -> None:
    plan, order = plan_of(rows, config), DataOrder(rows, config, seed, "stage")

    for row in rows:

        def rank(groups: Sequence[GroupKey], than: str = row.sample_id) -> int:
            return sum(1 for r in rows if r.sample_id < than and r[1:] in groups)

        assert plan.places(row[1:], rank, seed, "stage", cursor) == order.places_of(row.sample_id, cursor)
        for stream in plan.streams_with(row[1:]):
            at = rank(plan.keys(stream))
            steps = [p.step for p in plan.timetable.places(stream, at, cursor, seed, "stage")]
            draw_in = partial(draw_of, stream, at, seed, "stage")
            used = plan.timetable.uses_among(stream, plan.timetable.draws_before(stream, cursor), draw_in)
            assert used == len(steps)
            if used:
                ends = [plan.timetable.place(stream, draw_in(epoch)).step for epoch in (0, used - 1)]
                assert ends == [steps[0], steps[-1]]
    consumed = [draw for step in range(cursor) for pack in order.packs(step) for draw in pack.draws]
    assert sum(drawn for _, drawn in plan.draws(cursor)) == len(consumed)
    by_stream = {(p.stream.name, d.sample_id) for s in range(cursor) for p in order.packs(s) for d in p.draws}
    assert plan.distinct(cursor) == len(by_stream)


def test_a_group_that_no_stream_takes_has_no_places() -> None:
    rows = [SampleRow("a", "film", "video", 2, 16, 16), SampleRow("b", "film", "video", 8, 16, 16)]
    plan = plan_of(rows, OrderConfig(frames=57, min_frames=57))
    assert not plan.streams_with(("film", "video", 2, 16, 16))
    assert not plan.streams_with(("nowhere", "video", 8, 16, 16))
    with pytest.raises(ConfigError, match="no sample for stage"):
        plan_of(rows[:1], OrderConfig(frames=57, min_frames=57))
