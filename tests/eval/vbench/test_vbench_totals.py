"""VBench's totals: the published rows, and what holds for every table (affine, unclipped, absent when incomplete)."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.vbench.constants import DIMENSIONS, constants
from eval.vbench.totals import Totals, read_scores, totals
from m4v.core.errors import InputError

NAMES = ("total", "quality", "semantic")
PERCENT = st.floats(-50, 150)
TABLES = st.fixed_dictionaries(dict.fromkeys(DIMENSIONS, PERCENT))


def figures(found: Totals) -> list[float]:
    values = [getattr(found, name) for name in NAMES]
    assert all(v is not None for v in values)
    return values


def test_constants_are_those_of_the_oracle(oracles: Path) -> None:
    golden = json.loads((oracles / "vbench/normalisation.json").read_text())
    found = constants()
    assert list(DIMENSIONS) == golden["dimensions"]
    assert {d.name: {"min": d.min, "max": d.max} for d in found.dimensions} == golden["normalise"]
    assert {d.name: d.weight for d in found.dimensions} == golden["weight"]
    assert {g: set(found.names(g)) for g in ("quality", "semantic")} == {g: set(golden[g]) for g in found.group_weights}
    assert found.group_weights == {"quality": golden["quality_weight"], "semantic": golden["semantic_weight"]}


def test_published_rows_come_out(oracles: Path) -> None:
    golden = json.loads((oracles / "vbench/leaderboard_sample.json").read_text())
    assert golden["rows"]
    for row in golden["rows"]:
        found = totals(row["raw_percent"])
        assert found.all_missing == ()
        for name in NAMES:
            assert getattr(found, name) == pytest.approx(row["published"][name], abs=golden["tolerance_points"])
        fractions = totals({n: v / 100 for n, v in row["raw_percent"].items()}, "fraction")
        assert [100 * v for v in figures(fractions)] == pytest.approx(figures(found))


@settings(deadline=None, max_examples=40)
@given(TABLES, TABLES, st.floats(-2, 3))
def test_totals_are_affine_and_not_clipped(one: dict[str, float], two: dict[str, float], share: float) -> None:
    mixed = {n: (1 - share) * one[n] + share * two[n] for n in DIMENSIONS}
    expected = [(1 - share) * a + share * b for a, b in zip(figures(totals(one)), figures(totals(two)), strict=True)]
    assert figures(totals(mixed)) == pytest.approx(expected, abs=1e-6)


def test_bounds_map_to_zero_and_one_and_go_beyond() -> None:
    low = {d.name: 100 * d.min for d in constants().dimensions}
    high = {d.name: 100 * d.max for d in constants().dimensions}
    assert figures(totals(low)) == pytest.approx([0, 0, 0], abs=1e-9)
    assert figures(totals(high)) == pytest.approx([100, 100, 100])
    assert max(figures(totals({n: v - 5 for n, v in low.items()}))) < 0
    assert min(figures(totals({n: v + 5 for n, v in high.items()}))) > 100


@settings(deadline=None, max_examples=40)
@given(TABLES, st.sets(st.sampled_from(DIMENSIONS), min_size=1, max_size=len(DIMENSIONS) - 1))
def test_a_missing_dimension_leaves_its_totals_out(table: dict[str, float], gone: set[str]) -> None:
    found, whole = totals({n: v for n, v in table.items() if n not in gone}), totals(table)
    assert set(found.all_missing) == gone
    assert found.total is None
    for group in ("quality", "semantic"):
        mine = gone & set(constants().names(group))
        assert set(found.missing[group]) == mine
        assert getattr(found, group) == (None if mine else getattr(whole, group))


def test_what_is_odd_is_said() -> None:
    inside = {d.name: 50 * (d.min + d.max) for d in constants().dimensions}
    assert totals(inside).warnings == ()
    assert totals({**inside, "color": 101.0}).warnings == ("color: 101 lies outside 0 to 100",)
    (words,) = totals({**inside, "scene": 90.0}).warnings
    assert "scene" in words
    assert "not clipped" in words
    assert any("--unit fraction" in w for w in totals({"color": 0.5}).warnings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"color": NaN}', "NaN is no number"),
        ('{"color": 1, "color": 2}', "'color' stands twice"),
        ("[1]", "no object"),
        ("{", "no strict JSON"),
    ],
)
def test_a_file_is_read_strictly(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_scores(path)


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean color"):
        totals({"colour": 50.0})
    with pytest.raises(InputError, match="stands twice"):
        totals({"object_class": 50.0, "Object Class": 50.0})
    for value in (float("inf"), True, "50", None):
        with pytest.raises(InputError, match="no finite number"):
            totals({"color": value})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no dimension"):
        totals({})
