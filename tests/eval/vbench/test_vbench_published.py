"""Published rows (each with its source, those with all dimensions worked out again) and intervals of our own totals."""

import pytest

from eval.config import METRICS
from eval.records import Figures, Identity, ScoreSet, VideoScore
from eval.vbench.constants import DIMENSIONS, constants
from eval.vbench.intervals import affine, figure_intervals
from eval.vbench.published import FIGURES, published
from eval.vbench.totals import totals


def test_every_row_has_a_source_and_agrees_with_itself() -> None:
    found = published()
    assert {row.source for row in found.rows} == set(found.sources)
    assert len({(row.system, row.source) for row in found.rows}) == len(found.rows)
    for row in found.rows:
        assert set(row.dimensions) <= set(DIMENSIONS)
        printed = (4 * row.figures["quality"] + row.figures["semantic"]) / 5
        assert row.figures["total"] == pytest.approx(printed, abs=0.011), row.system
    complete = [row for row in found.rows if row.complete]
    assert complete
    for row in complete:
        again = totals(row.dimensions)
        for name in FIGURES:
            assert getattr(again, name) == pytest.approx(row.figures[name], abs=0.015)


def scored(values: dict[str, list[float]]) -> ScoreSet:
    """Six prompts of one seed with these values; dimensions measured on all of them."""
    identity = Identity(
        checkpoint="c", ema=True, sampler={}, codec={}, text_encoder={}, video_codec="", prompt_set="p", seed_rule="",
        base_seed=0, samples_per_prompt=1, frames=9, fps=8, height=64, width=64, metrics={}, metric_config={},
    )  # fmt: skip
    count = len(next(iter(values.values())))
    videos = tuple(
        VideoScore(
            file=f"{n}", prompt="p", prompt_index=n, sample_index=0, details={},
            metrics={f"vbench.{d}": row[n] for d, row in values.items()},
        )
        for n in range(count)
    )  # fmt: skip
    means = {d: sum(row) / count for d, row in values.items()}
    total = totals(means, "fraction").total
    figures = Figures(figures={"vbench.total": total, "vbench.avg4": None}, missing={}, failed={})
    return ScoreSet(identity=identity, metrics={}, per_video=videos, figures=figures)


def test_total_s_interval_follows_its_dimensions() -> None:
    start, slopes = affine("total", DIMENSIONS)
    raw = {d: 0.3 + n / 50 for n, d in enumerate(DIMENSIONS)}
    assert start + sum(slopes[d] * raw[d] for d in DIMENSIONS) == pytest.approx(totals(raw, "fraction").total)
    flat = {d.name: [(d.min + d.max) / 2] * 6 for d in constants().dimensions}
    steady = figure_intervals(scored(flat), resamples=200, confidence=0.95)
    assert steady["vbench.total"] == pytest.approx((0.5, 0.5))
    moving = {**flat, "dynamic_degree": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]}
    found = figure_intervals(scored(moving), resamples=2000, confidence=0.95)
    # A yes or no of six prompts: standard error 0.204, and 4/5 x 0.5/6.5 of it reaches the total.
    assert found["vbench.total"] == pytest.approx((0.5 - 1.96 * 0.0126, 0.5 + 1.96 * 0.0126), abs=0.006)
    assert figure_intervals(scored({d: row[:4] for d, row in flat.items()}), resamples=200, confidence=0.95) == {}


def test_local_metrics_never_take_a_suite_s_name() -> None:
    assert all(name.startswith(("local.", "conse.")) for name in METRICS)
