"""The closed-form data order: bijection, inverse, rank independence, exact mixture weights."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4v.core.errors import ConfigError
from training.config import MixtureEntry, OrderConfig
from training.order import DataOrder, Place
from training.samples import SampleRow
from training.template import Column, apportion, column_tokens, interleave, unit_cycle

SIZES = ((1, 8, 8), (2, 8, 8), (3, 8, 16), (8, 16, 16), (20, 16, 24))


@st.composite
def datasets(draw: st.DrawFn) -> list[SampleRow]:
    rows = []
    for number in range(draw(st.integers(3, 40))):
        t, h, w = draw(st.sampled_from(SIZES))
        media = "image" if t == 1 else "video"
        rows.append(SampleRow(f"{number:04d}", draw(st.sampled_from(("film", "street"))), media, t, h, w))
    return [*rows, SampleRow("9999", "film", "video", 8, 16, 16)]


orders = st.builds(
    OrderConfig,
    frames=st.sampled_from((1, 9, 57, 121)),
    min_frames=st.just(9),
    tokens_per_pack=st.sampled_from((64, 300, 900)),
    packs=st.sampled_from((2, 4)),
    image_every=st.sampled_from((0, 2, 8)),
    mixture=st.sampled_from(
        (
            (MixtureEntry(name="all"),),
            (MixtureEntry(name="film", sources=("film",), weight=2), MixtureEntry(name="rest", sources=("str*",))),
        )
    ),
)


@settings(max_examples=20, deadline=None)
@given(datasets(), orders, st.integers(0, 2**31), st.integers(1, 40))
def test_inverse_and_counts_agree_with_replay(
    rows: list[SampleRow], config: OrderConfig, seed: int, cursor: int
) -> None:
    order = DataOrder(rows, config, seed, "stage")
    replay: dict[str, list[Place]] = {}
    draws: Counter[tuple[str, int]] = Counter()
    for step in range(cursor):
        packs = order.packs(step)
        assert order.step_size(step).samples == sum(len(p.draws) for p in packs)
        for pack in packs:
            assert pack.stream.kind == order.media(step)
            for slot, draw in enumerate(pack.draws):
                replay.setdefault(draw.sample_id, []).append(Place(step, pack.place, slot))
                draws[pack.stream.name, draw.number] += 1
    assert max(draws.values()) == 1  # no draw is consumed twice
    assert order.counts(cursor) == {s: len(p) for s, p in replay.items()}
    for row in rows:
        assert order.places_of(row.sample_id, cursor) == sorted(replay.get(row.sample_id, []))


@settings(max_examples=40, deadline=None)
@given(datasets(), orders, st.integers(0, 2**31))
def test_every_epoch_is_a_bijection(rows: list[SampleRow], config: OrderConfig, seed: int) -> None:
    order = DataOrder(rows, config, seed, "stage")
    for stream in order.streams:
        n = len(stream.samples)
        for epoch in range(3):
            assert sorted(order.sample_at(stream, epoch * n + i) for i in range(n)) == list(stream.samples)


@settings(max_examples=30, deadline=None)
@given(datasets(), orders, st.integers(0, 99), st.integers(0, 40))
def test_ranks_cut_the_same_step(rows: list[SampleRow], config: OrderConfig, seed: int, step: int) -> None:
    order = DataOrder(rows, config, seed, "stage")
    whole = {p.place: p.draws for p in order.packs(step)}
    for world_size in (w for w in (1, 2, 4) if config.packs % w == 0):
        cut = {p.place: p.draws for r in range(world_size) for p in order.rank_packs(step, r, world_size)}
        assert cut == whole


def test_mixture_weights_are_exact_over_a_period() -> None:
    rows = [SampleRow(f"a{i}", "film", "video", 8, 16, 16) for i in range(5)]
    rows += [SampleRow(f"b{i}", "street", "video", 20 - i % 2, 16, 16) for i in range(90)]
    entries = (
        MixtureEntry(name="film", sources=("film",), weight=3),
        MixtureEntry(name="street", sources=("street",), weight=4),
    )
    order = DataOrder(rows, OrderConfig(frames=121, packs=2, mixture=entries, image_every=0), 1, "x")
    period = sum(len(s.positions) for s in order.streams)
    assert period % 7 == 0
    packs = Counter(p.stream.entry for step in range(period // 2) for p in order.packs(step))
    assert Fraction(packs["film"], packs["street"]) == Fraction(3, 4)


def test_images_follow_every_eighth_video_step() -> None:
    rows = [SampleRow(f"v{i}", "film", "video", 8, 16, 16) for i in range(9)]
    rows += [SampleRow(f"i{i}", "photos", "image", 1, 16, 16) for i in range(4)]
    order = DataOrder(rows, OrderConfig(frames=57, image_every=8), 1, "x")
    assert [order.media(s) for s in range(18)] == (["video"] * 8 + ["image"]) * 2
    assert all(d.sample_id.startswith("i") for p in order.packs(8) for d in p.draws)
    still = DataOrder(rows, OrderConfig(frames=1), 1, "t2i")
    assert set(still.counts(200)) == {r.sample_id for r in rows}  # images and first frames of videos


def test_longer_clips_are_read_as_prefixes_and_short_ones_keep_their_length() -> None:
    rows = [SampleRow(f"{t}", "film", "video", t, 16, 16) for t in (2, 4, 8, 31)]
    order = DataOrder(rows, OrderConfig(frames=57, min_frames=25), 1, "57f")
    assert sorted((s.t, tuple(s.samples)) for s in order.streams) == [(4, ("4",)), (8, ("31", "8"))]
    units = {c.unit for stream in order.streams if stream.t == 8 for pack in stream.cycle for c in pack}
    assert units == set(range(1, 9))


@pytest.mark.parametrize("t", [1, 2, 8, 16, 31])
def test_unit_cycle_meets_every_unit_and_balances_tokens(t: int) -> None:
    cycle = unit_cycle((0, 1, 1, 2), t, 16, 24)
    for column in range(4):
        assert sorted(pack[column].unit for pack in cycle) == list(range(1, t + 1))
    tokens = [sum(column_tokens(c, 16, 24) for c in pack) for pack in cycle]
    assert max(tokens) <= (1.05 if t >= 16 else 1.5) * min(tokens)


def test_token_counts_are_those_of_the_published_sizes() -> None:
    """Last unit at 768x1280 (PyramidFlow spec, section 8)."""
    for t, expected in ((16, (3840, 5280, 11760)), (31, (7440, 8880, 15360))):
        assert tuple(column_tokens(Column(s, t), 96, 160) for s in range(3)) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.integers(0, 200))
def test_apportion_is_close_to_the_shares(shares: list[int], extra: int) -> None:
    total = len(shares) + extra
    counts = apportion(total, [Fraction(s) for s in shares])
    assert sum(counts) == total
    assert min(counts) >= 1
    for share, count in zip(shares, counts, strict=True):
        if count > 1:
            assert count <= Fraction(share * total, sum(shares)) + 1


def test_interleave_spreads() -> None:
    sequence = interleave([6, 3, 1])
    assert Counter(sequence) == {0: 6, 1: 3, 2: 1}
    assert max(len(run) for run in "".join(map(str, sequence)).replace("1", " ").replace("2", " ").split()) <= 3


def test_errors_name_the_way_out() -> None:
    rows = [SampleRow("a", "film", "video", 2, 16, 16)]
    with pytest.raises(ConfigError, match="no sample for stage"):
        DataOrder(rows, OrderConfig(frames=121, min_frames=57), 1, "121f")
    order = DataOrder(rows, OrderConfig(frames=9, packs=2), 1, "9f")
    with pytest.raises(ConfigError, match="multiple of 3"):
        order.rank_packs(0, 0, 3)
