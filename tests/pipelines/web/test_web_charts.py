"""Geometry and formats of the pages: ticks, curves, graph layout, numbers in words."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.web import render
from pipelines.web.charts import compact, line_chart, nice_ticks, smooth, strip
from pipelines.web.graph_layout import BOX_HEIGHT, BOX_WIDTH, ROW_LIMIT, lay_out, reduce_edges


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_inside_and_are_evenly_spaced(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert 1 <= len(ticks) <= 12
    assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert all(math.isclose(s, steps[0], rel_tol=1e-6) for s in steps)


def test_line_chart_spans_its_box_and_keeps_the_ends() -> None:
    chart = line_chart(range(1000), [1 / (1 + k) for k in range(1000)], label="x")
    assert chart is not None
    points = [p.split(",") for p in chart.points.split(";")]
    assert (points[0][2], points[-1][2]) == ("0", "999")
    assert len(points) <= 400
    xs, ys = [float(p[0]) for p in points], [float(p[1]) for p in points]
    assert 0 < min(xs) < max(xs) < chart.width
    assert 0 < min(ys) < max(ys) < chart.height
    assert ys[0] < ys[-1]  # a falling loss goes down the page


def test_line_chart_of_odd_inputs() -> None:
    assert line_chart([], [], label="x") is None
    assert line_chart([0.0], [math.nan], label="x") is None
    flat = line_chart([0.0, 1.0], [2.0, 2.0], label="x")
    single = line_chart([3.0], [2.0], label="x")
    assert flat is not None
    assert single is not None
    assert "nan" not in flat.points + single.points


def test_smooth_is_a_mean_and_keeps_constants() -> None:
    assert smooth([2.0] * 7, 5) == [2.0] * 7
    assert smooth([0.0, 3.0, 6.0], 3) == [1.5, 3.0, 4.5]


def test_strip_places_values_on_one_axis() -> None:
    chart = strip([0.9, 1.0], [0.2, 0.4], 0.5)
    assert chart is not None
    assert (chart.low, chart.high) == ("0", "1")
    assert max(chart.second) < chart.chance < min(chart.first)
    assert strip([], [], 0.5) is None
    same = strip([3.0], [3.0], None)
    assert same is not None
    assert same.first == same.second


def test_graph_leaves_out_implied_edges_and_keeps_order() -> None:
    nodes = ["a", "b", "c", "d"]
    assert reduce_edges(nodes, [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d"), ("a", "b")]) == [
        ("a", "b"), ("b", "c"), ("c", "d"),
    ]  # fmt: skip
    assert reduce_edges(nodes, [("a", "unknown"), ("a", "a")]) == []


@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda e: e[0] < e[1]), max_size=30))
def test_boxes_never_overlap_and_arrows_point_down(edges: set[tuple[int, int]]) -> None:
    names = [f"n{k}" for k in range(12)]
    layout = lay_out(names, [(names[a], names[b]) for a, b in sorted(edges)])
    place = {n.id: n for n in layout.nodes}
    for a, b in itertools.combinations(layout.nodes, 2):
        assert abs(a.y - b.y) >= BOX_HEIGHT or abs(a.x - b.x) >= BOX_WIDTH
    for edge in layout.edges:
        assert place[edge.source].y + BOX_HEIGHT < place[edge.target].y
    assert all(n.x >= 0 and n.x + BOX_WIDTH <= layout.width for n in layout.nodes)
    rows = Counter(n.y for n in layout.nodes)
    assert max(rows.values()) <= ROW_LIMIT  # the drawing never needs to be scrolled sideways
    assert all(n.y >= 0 and n.y + BOX_HEIGHT <= layout.height for n in layout.nodes)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (4.21, "4.2 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (3599.7, "1 h 00 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


def test_numbers_in_words() -> None:
    assert render.size(0) == "0 B"
    assert render.size(1536) == "1.5 KiB"
    assert render.size(5 * 2**40) == "5.0 TiB"
    assert [render.number(v) for v in (None, 0.12345, 12345.6, 7)] == ["–", "0.123", "12,346", "7"]
    assert render.signed(-0.5) == "−0.500"
    assert render.percent(-0.65) == "−65%"
    assert render.short("a" * 64) == "a" * 10
    assert render.short("run-0001") == "run-0001"
    assert [compact(v) for v in (0, 0.25, 1234, 27590.0, 2e6, 3e-5)] == ["0", "0.25", "1234", "27.6k", "2M", "3e-5"]
    assert render.moment("2026-11-21T12:47:31.511551Z") == "2026-11-21 12:47 UTC"
    assert render.moment("yesterday") == "yesterday"
