"""Running work that reads a clip is drained, and nothing starts or ends on a withdrawn version."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from slow_stage import SLOW, SlowConfig
from takedown_home import TakedownHome

from m4v.core.errors import ExitClass
from pipelines.dataset_versions import pinned_node
from pipelines.execute import PipelineRun
from pipelines.ledger import Status
from pipelines.spec import StageNode
from pipelines.takedown.policy import Delete

WAIT_S = 300


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def reading(home: TakedownHome, **config: Any) -> PipelineRun:
    """A run, not yet started, of a stage that reads the home's dataset."""
    pinned = pinned_node(home.ledger, home.ledger.artifact(home.only("dataset"), "dataset"))
    node = StageNode("slow", SLOW, SlowConfig(**config), {"dataset": (pinned.id, "dataset")})
    return PipelineRun("slow", {}, [pinned, node], home.workspace, ledger=home.ledger, launcher=home.launcher)


def started(home: TakedownHome, run: PipelineRun) -> threading.Thread:
    thread = threading.Thread(target=run.run_all)
    thread.start()
    deadline = time.monotonic() + WAIT_S
    while not home.ledger.attempts(status=Status.RUNNING):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return thread


def test_a_stage_that_reads_the_clip_is_drained_and_never_resumed(home: TakedownHome) -> None:
    clip = home.rows(home.only("dataset"))[0]["clip_id"]
    run, late = reading(home), reading(home, seconds=601.0)
    thread = started(home, run)
    told: list[str] = []
    done = home.apply(clip, delete=Delete.KEEP, tell=told.append)
    thread.join(WAIT_S)
    case = done.case.takedown_id
    outcome = run.outcomes["slow"]
    assert (str(outcome.status), outcome.exit_class) == ("drained", ExitClass.DRAINED)
    assert f"as ada asked: takedown {case} withdrew what it reads" in str(outcome.error)
    (drained,) = done.receipt["drained"]
    assert (drained["stage"], drained["status"]) == ("slow", "drained")
    assert any(text.startswith("draining slow") for text in told)
    # A run that was made before the takedown finds its input withdrawn.
    refused = late.run_all()
    assert [str(o.status) for o in refused.values()] == ["failed", "blocked"]
    assert f"withdrawn by takedown {case}" in str(next(iter(refused.values())).error)


def test_what_earlier_work_left_of_the_clip_goes(home: TakedownHome) -> None:
    dataset = home.only("dataset")
    run = reading(home, kept=True, fails=True)
    run.run_all()
    assert str(run.outcomes["slow"].status) == "failed"
    (attempt,) = home.ledger.attempts(stage="slow")
    left = [Path(attempt.work_dir) / "scratch", home.workspace.home / "store" / "state" / attempt.stage_key]
    assert all(any(place.iterdir()) for place in left)
    other = home.workspace.home / "store" / "state" / ("f" * 64)
    other.mkdir(parents=True)
    copy = home.workspace.home / "cache" / dataset
    copy.mkdir(parents=True)
    clip = home.rows(dataset)[0]["clip_id"]
    done = home.apply(clip)
    assert not any(place.exists() for place in (*left, copy))
    assert other.exists()
    assert Path(attempt.log_path).exists()
    items = {d["item"] for d in done.receipt["deleted"]}
    assert {f"resume state {attempt.stage_key}", f"attempt scratch {attempt.attempt_id}"} <= items
    assert not home.apply(clip).did_something


@pytest.mark.deep
def test_work_that_does_not_stop_cannot_commit(home: TakedownHome) -> None:
    clip = home.rows(home.only("dataset"))[0]["clip_id"]
    run = reading(home, seconds=15.0, stubborn=True)
    thread = started(home, run)
    done = home.apply(clip, delete=Delete.KEEP)
    thread.join(WAIT_S)
    assert str(run.outcomes["slow"].status) == "failed"
    assert "dataset was withdrawn by takedown" in str(run.outcomes["slow"].error)
    assert [a.kind for a in home.ledger.artifacts(kind="samples")] == []
    assert done.receipt["drained"][0]["status"] == "failed"
