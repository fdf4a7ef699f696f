"""The leaderboard over a real ledger and real score files: protocols apart, intervals, gates, channels, gone bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluated_home import BAD, GOOD, EvaluatedHome, score_set

from m4v.core.artifacts import ArtifactKind
from pipelines.inspection.leaderboard import Board, leaderboard
from pipelines.ledger import Ledger


@pytest.fixture
def home(tmp_path: Path) -> Iterator[EvaluatedHome]:
    with Ledger.open(str(tmp_path / "ledger.db")) as ledger:
        yield EvaluatedHome(tmp_path, ledger)


def _board(home: EvaluatedHome) -> Board:
    found = leaderboard(home.ledger, home.cache)
    assert len(found.boards) == 1
    return found.boards[0]


def test_entries_stand_in_the_order_of_better(home: EvaluatedHome) -> None:
    low, _, _ = home.evaluated([0.1] * 6)
    high, _, _ = home.evaluated([0.9] * 6)
    none, _, _ = home.evaluated([None] * 6)
    board = _board(home)
    assert [e.checkpoint for e in board.sorted_by(GOOD)] == [high, low, none]
    assert [e.checkpoint for e in board.sorted_by(BAD)] == [low, high, none]
    assert [e.checkpoint for e in board.sorted_by(GOOD, descending=False)] == [low, high, none]
    assert [e.checkpoint for e in board.sorted_by(None)] == [none, high, low]
    assert board.entries[0].stage == "train 57f"


def test_an_interval_covers_the_mean_and_needs_enough_prompts(home: EvaluatedHome) -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, None]
    home.evaluated(values)
    score = _board(home).entries[0].scores[GOOD]
    assert score.interval is not None
    low, high = score.interval
    assert (score.videos, score.prompts, score.mean) == (6, 6, pytest.approx(0.35))
    # The bootstrap's standard error of six values a tenth apart is 0.0697.
    assert low == pytest.approx(0.35 - 1.96 * 0.0697, abs=0.02)
    assert high == pytest.approx(0.35 + 1.96 * 0.0697, abs=0.02)
    home.evaluated([0.5] * 4)
    assert next(e for e in _board(home).entries if e.scores[GOOD].prompts == 4).scores[GOOD].interval is None


def test_other_protocols_stand_on_boards_of_their_own(home: EvaluatedHome) -> None:
    home.evaluated([0.1] * 6)
    home.evaluated([0.1] * 6, steps=20)
    boards = leaderboard(home.ledger, home.cache).boards
    assert [len(board.entries) for board in boards] == [1, 1]
    assert boards[0].protocol != boards[1].protocol


def test_gates_and_channels_stand_beside_their_checkpoint(home: EvaluatedHome) -> None:
    _, _, baseline = home.evaluated([0.1] * 6)
    checkpoint, scores_id, scores = home.evaluated([0.9] * 6)
    verdict = home.judge(scores, False, ["too dull"], baseline)
    home.ledger.move_channel("production", checkpoint, expected=None, moved_by="me", reason="")
    entries = {e.scores_id: e for e in _board(home).entries}
    entry = entries[scores_id]
    assert entry.channels == ("production",)
    assert [(g.artifact_id, g.passed, g.refused, g.baseline) for g in entry.gates] == [
        (verdict.artifact_id, False, ("too dull",), baseline.artifact_id)
    ]
    assert entries[baseline.artifact_id].gates == ()
    home.ledger.move_channel(
        "production", entries[baseline.artifact_id].checkpoint, expected=checkpoint, moved_by="me", reason=""
    )
    assert next(e for e in _board(home).entries if e.scores_id == scores_id).channels == ()


def test_a_regression_is_marked_against_the_channel_or_the_evaluation_before(home: EvaluatedHome) -> None:
    first, first_scores, _ = home.evaluated([0.4, 0.5, 0.6, 0.5, 0.4, 0.6])
    _, worse, _ = home.evaluated([0.3, 0.4, 0.5, 0.4, 0.3, 0.5])
    _, equal, _ = home.evaluated([0.5, 0.4, 0.6, 0.5, 0.6, 0.4])
    entries = {e.scores_id: e for e in _board(home).entries}
    assert entries[first_scores].against is None
    change = entries[worse].changes[GOOD]
    assert (entries[worse].against, change.regression, change.gain) == (first_scores, True, pytest.approx(-0.1))
    assert entries[worse].changes[BAD].improvement, "of noise less is better"
    assert entries[equal].against == worse
    home.ledger.move_channel("production", first, expected=None, moved_by="me", reason="")
    entries = {e.scores_id: e for e in _board(home).entries}
    assert entries[first_scores].changes == {}
    assert entries[equal].against == first_scores
    assert not entries[equal].changes[GOOD].regression


def test_scores_whose_bytes_are_gone_are_named(home: EvaluatedHome) -> None:
    _, gone, record = home.evaluated([0.1] * 6)
    home.evaluated([0.9] * 6)
    shutil.rmtree(record.uri)
    found = leaderboard(home.ledger, home.cache)
    assert found.unreadable == ((gone, "its bytes are no longer in the store"),)
    assert len(found.boards[0].entries) == 1


def test_only_the_newest_are_read(home: EvaluatedHome) -> None:
    for value in (0.1, 0.2, 0.3):
        newest, _, _ = home.evaluated([value] * 6)
    found = leaderboard(home.ledger, home.cache, newest=1)
    assert found.limited
    assert [e.checkpoint for e in found.boards[0].entries] == [newest]


def test_what_stands_in_is_named_and_neither_sorted_nor_compared(home: EvaluatedHome) -> None:
    low, _, _ = home.evaluated([0.1] * 6, stand_in=["good"])
    high, _, _ = home.evaluated([0.9] * 6, stand_in=["good"])
    board = _board(home)
    assert str(board.facts["weights"]) == f"stand-in weights, not a result: {GOOD}"
    assert [entry.stand_in for entry in board.entries] == [(GOOD,), (GOOD,)]
    assert [dict(entry.changes) for entry in board.entries] == [{}, {}]
    assert [e.checkpoint for e in board.sorted_by(GOOD)] == [high, low], "in the order of evaluation"
    assert [e.checkpoint for e in board.sorted_by(GOOD, descending=False)] == [high, low]
    assert [e.checkpoint for e in board.sorted_by(BAD, descending=False)] == [low, high]


def test_no_seed_is_told_of_another_system_s_videos(home: EvaluatedHome) -> None:
    home.evaluated([0.1] * 6)
    assert _board(home).facts["seed"] == "0 (rule)"
    scores = home.record(ArtifactKind.SCORES, {}, score_set("system:other", [0.2] * 6, 9))
    home.run("evaluate", "scores", scores, {})
    (board,) = (b for b in leaderboard(home.ledger, home.cache).boards if b.entries[0].system)
    assert board.facts["seed"] == "rule"
