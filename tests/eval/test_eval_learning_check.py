"""The learning check's arithmetic: what is unseen, how accuracy, interval and chance are counted."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

from learning_corpus import Words, all_words
from learning_scores import CHANCE, Found, accuracies, wilson


def test_held_out_prompts_are_unseen_and_their_words_are_not() -> None:
    seen = [w for w in all_words() if not w.held_out]
    unseen = [w for w in all_words() if w.held_out]
    assert {w[:3] for w in seen}.isdisjoint({w[:3] for w in unseen})
    assert {c for w in seen for c in w.captions}.isdisjoint({c for w in unseen for c in w.captions})
    for a, b in itertools.combinations(range(4), 2):
        assert {(w[a], w[b]) for w in unseen} <= {(w[a], w[b]) for w in seen}


def test_accuracy_counts_each_word_and_all_together() -> None:
    asked = [Words("red", "star", "up", "white"), Words("blue", "circle", "left", "white")]
    found = [Found("red", "star", "up", "white"), Found("blue", "star", None, "black")]
    counted = accuracies(asked, found)
    assert {name: a.right for name, a in counted.items()} == {
        "colour": 2, "shape": 1, "motion": 1, "background": 1, "all": 1,
    }  # fmt: skip
    assert counted["colour"].shuffled == 0.5
    assert CHANCE["all"] == pytest.approx(1 / (6 * 4 * 4 * 2))


def test_interval_of_a_share() -> None:
    """Values of Wilson's formula for 8 of 10 and the ends."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(10, 10)[1] == pytest.approx(1.0, abs=1e-12)
