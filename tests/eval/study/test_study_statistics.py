"""Agreement and strengths against closed forms, published examples and known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.study.statistics import PRIOR_WINS, bradley_terry, kendall_w, krippendorff_alpha, mid_ranks


def test_mid_ranks_share_what_ties_take() -> None:
    assert mid_ranks([3, 1, 1, 7]).tolist() == [3.0, 1.5, 1.5, 4.0]
    assert mid_ranks([2, 2, 2]).tolist() == [2.0, 2.0, 2.0]


def test_kendall_w_at_its_ends_and_by_friedman() -> None:
    assert kendall_w(np.array([[1.0, 2, 3]] * 4)) == pytest.approx(1.0)
    assert kendall_w(np.array([[1.0, 2, 3], [2, 3, 1], [3, 1, 2]])) == pytest.approx(0.0)
    assert kendall_w(np.array([[1.0, 2, 3]])) is None
    assert kendall_w(np.full((3, 3), 2.0)) is None
    # Friedman's statistic is raters (systems - 1) W; scipy.stats.friedmanchisquare of these columns
    scores = [[7, 5, 6, 5], [8, 8, 5, 4], [6, 7, 7, 3], [9, 4, 6, 6]]
    ranks = np.stack([mid_ranks(row) for row in scores])
    w = kendall_w(ranks)
    assert w is not None
    assert 4 * 3 * w == pytest.approx(4.916667, abs=1e-5)


def test_alpha_of_the_published_example() -> None:
    """Krippendorff's example of four coders and twelve units with gaps: ordinal alpha 0.815."""
    rows = (
        (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
        (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
        (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
        (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
    )
    units = [[v for v in column if v is not None] for column in zip(*rows, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 3]]) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    assert krippendorff_alpha(rng.integers(1, 6, (400, 6)).tolist()) == pytest.approx(0.0, abs=0.03)
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [2]]) is None


def test_bradley_terry_of_two_is_the_log_of_their_odds() -> None:
    found = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert found[0] - found[1] == pytest.approx(math.log((30 + PRIOR_WINS) / (10 + PRIOR_WINS)))
    assert found.sum() == pytest.approx(0.0)


def test_bradley_terry_finds_the_strengths_that_made_the_wins() -> None:
    truth = np.array([1.0, 0.5, 0.0, -0.5, -1.0])
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    wins = 100_000 * chance * (1 - np.eye(5))
    assert bradley_terry(wins) == pytest.approx(truth, abs=1e-4)
    assert bradley_terry(np.stack([wins, wins.T]))[1] == pytest.approx(-truth, abs=1e-4)


def test_a_system_that_always_wins_has_a_finite_strength() -> None:
    wins = np.triu(np.full((3, 3), 20.0), 1)
    found = bradley_terry(wins)
    assert np.isfinite(found).all()
    assert found[0] > found[1] > found[2]
    assert bradley_terry(np.zeros((3, 3))) == pytest.approx([0, 0, 0])
