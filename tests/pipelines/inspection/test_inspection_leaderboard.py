"""The leaderboard over a real ledger and real score files: protocols apart, intervals, gates, channels, gone bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.records import SCORES, Identity, MetricScore, ScoreSet, VideoScore, write_record
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.stage import InputRef
from pipelines.inspection.leaderboard import Board, leaderboard
from pipelines.ledger import Ledger, NewRun
from pipelines.store import ArtifactRecord

GOOD, BAD = "local.good", "local.noise"


class Home:
    def __init__(self, root: Path, ledger: Ledger) -> None:
        self.root, self.ledger, self.count = root, ledger, 0
        self.cache = root / "cache"

    def record(self, kind: ArtifactKind, summary: dict[str, Any], scores: ScoreSet | None = None) -> ArtifactRecord:
        self.count += 1
        folder = self.root / f"artifact{self.count}"
        folder.mkdir()
        (folder / "number").write_text(str(self.count))
        if scores is not None:
            write_record(folder / SCORES, scores)
        manifest = build_manifest(folder, kind, summary)
        write_manifest(folder, manifest)
        return ArtifactRecord(
            artifact_id=manifest.artifact_id, kind=kind, uri=str(folder), size_bytes=manifest.size_bytes,
            files=len(manifest.files), summary=manifest.summary,
        )  # fmt: skip

    def run(
        self, stage: str, port: str, output: ArtifactRecord, inputs: Mapping[str, ArtifactRecord], **config: Any
    ) -> str:
        self.count += 1
        key = f"{self.count:064d}"
        claim = self.ledger.claim(key, "tester")
        attempt = self.ledger.begin_attempt(claim, stage=stage, work_dir="work", log_path="log")
        facts = NewRun(
            stage=stage, stage_version=1, stage_key=key, key_record={}, config=config, code_digest="c" * 64, seed=7
        )
        references = [InputRef(name=n, kind=a.kind, artifact_id=a.artifact_id, uri=a.uri) for n, a in inputs.items()]
        return self.ledger.commit_run(claim, attempt, facts, references, {port: output}, {})

    def evaluated(self, values: Sequence[float | None], *, steps: int = 8, stage: str = "57f") -> tuple[str, str, Any]:
        """A trained checkpoint, its samples and their scores; (checkpoint id, scores id, scores record)."""
        checkpoint = self.record(ArtifactKind.CHECKPOINT, {})
        self.run("train", "checkpoint", checkpoint, {}, name=stage)
        samples = self.record(ArtifactKind.SAMPLES, {})
        self.run("generate", "samples", samples, {"checkpoint": checkpoint})
        scores = self.record(ArtifactKind.SCORES, {}, score_set(checkpoint.artifact_id, values, steps))
        self.run("evaluate", "scores", scores, {"samples": samples})
        return checkpoint.artifact_id, scores.artifact_id, scores


def score_set(checkpoint: str, values: Sequence[float | None], steps: int) -> ScoreSet:
    identity = Identity(
        checkpoint=checkpoint, ema=True, sampler={"steps": steps}, codec={}, text_encoder={}, video_codec="h264",
        prompt_set="p" * 64, seed_rule="rule", base_seed=0, samples_per_prompt=1, frames=17, fps=24.0,
        height=64, width=64, metrics={GOOD: 1, BAD: 1}, metric_config={},
    )  # fmt: skip
    known = [v for v in values if v is not None]
    good = MetricScore(
        version=1, title="Good", unit="", description="more is better", higher_is_better=True, chance=None,
        mean=float(np.mean(known)) if known else None, count=len(known), values=tuple(values),
    )  # fmt: skip
    bad = good.model_copy(update={"title": "Noise", "higher_is_better": False})
    videos = tuple(
        VideoScore(
            file=f"{n}.mp4", prompt="p", prompt_index=n, sample_index=0, metrics={GOOD: v, BAD: v}, details={}
        )
        for n, v in enumerate(values)
    )  # fmt: skip
    return ScoreSet(identity=identity, metrics={GOOD: good, BAD: bad}, per_video=videos)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Ledger.open(str(tmp_path / "ledger.db")) as ledger:
        yield Home(tmp_path, ledger)


def _board(home: Home) -> Board:
    found = leaderboard(home.ledger, home.cache)
    assert len(found.boards) == 1
    return found.boards[0]


def test_entries_stand_in_the_order_of_better(home: Home) -> None:
    low, _, _ = home.evaluated([0.1] * 6)
    high, _, _ = home.evaluated([0.9] * 6)
    none, _, _ = home.evaluated([None] * 6)
    board = _board(home)
    assert [e.checkpoint for e in board.sorted_by(GOOD)] == [high, low, none]
    assert [e.checkpoint for e in board.sorted_by(BAD)] == [low, high, none]
    assert [e.checkpoint for e in board.sorted_by(GOOD, descending=False)] == [low, high, none]
    assert [e.checkpoint for e in board.sorted_by(None)] == [none, high, low]
    assert board.entries[0].stage == "train 57f"


def test_an_interval_covers_the_mean_and_needs_enough_prompts(home: Home) -> None:
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


def test_other_protocols_stand_on_boards_of_their_own(home: Home) -> None:
    home.evaluated([0.1] * 6)
    home.evaluated([0.1] * 6, steps=20)
    boards = leaderboard(home.ledger, home.cache).boards
    assert [len(board.entries) for board in boards] == [1, 1]
    assert boards[0].protocol != boards[1].protocol


def test_gates_and_channels_stand_beside_their_checkpoint(home: Home) -> None:
    _, _, baseline = home.evaluated([0.1] * 6)
    checkpoint, scores_id, scores = home.evaluated([0.9] * 6)
    verdict = home.record(ArtifactKind.SCORES, {"passed": False, "refused": ["too dull"]})
    home.run("gate", "scores", verdict, {"scores": scores, "baseline": baseline})
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


def test_scores_whose_bytes_are_gone_are_named(home: Home) -> None:
    _, gone, record = home.evaluated([0.1] * 6)
    home.evaluated([0.9] * 6)
    shutil.rmtree(record.uri)
    found = leaderboard(home.ledger, home.cache)
    assert found.unreadable == ((gone, "its bytes are no longer in the store"),)
    assert len(found.boards[0].entries) == 1


def test_only_the_newest_are_read(home: Home) -> None:
    for value in (0.1, 0.2, 0.3):
        newest, _, _ = home.evaluated([value] * 6)
    found = leaderboard(home.ledger, home.cache, newest=1)
    assert found.limited
    assert [e.checkpoint for e in found.boards[0].entries] == [newest]
