"""Real training on a real Slurm: two ranks on two nodes, drained by the pre-signal in the middle, queued again, and
the same checkpoint as on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench import wait_for
from slurm_cluster import is_installed, running_cluster

from pipelines.ledger import Ledger

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(not is_installed(), reason="no Slurm here: bash infra/setup/slurm.sh installs it"),
]
TRAIN = ["--set", "train.t2i.steps=60", "--set", "train.t2i.save_every=20"]
SLURM = [
    "--set", "profiles.local.launcher=slurm", "--set", "profiles.local.slurm.ranks_per_node=1",
    "--set", "profiles.local.slurm.poll_s=0.5", "--set", "profiles.local.slurm.drain_s=60",
]  # fmt: skip


def m4v(home: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli.main", *words]
    environment = {**os.environ, "M4V_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def checkpoint(home: Path) -> tuple[str, str]:
    """(stage key, artifact id) of the trained stage."""
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        (run,) = ledger.runs(stage="train", limit=None)
        return run.stage_key, run.outputs[0].artifact_id


def test_training_drained_and_queued_again_makes_the_same_checkpoint(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    assert m4v(home, "run", "micro", *TRAIN, "--until", "encode").wait(1500) == 0
    shutil.copytree(home, here)
    with running_cluster() as cluster:
        process = m4v(home, "run", "micro", *TRAIN, *SLURM, "--until", "train.t2i")

        def steps() -> float:
            found = [json.loads(p.read_text())["done"] for p in home.glob("work/*/*/progress.json")
                     if (p.parent / "job.json").exists()]  # fmt: skip
            return max(found, default=0)

        wait_for(lambda: steps() >= 5 or process.poll() is not None, 600)
        cluster.call("scancel", "--signal=TERM", "--batch", *cluster.live())
        assert process.wait(900) == 0
        names = [name for _, name, _ in cluster.jobs()]
        assert len([name for name in names if checkpoint(home)[0][:12] in name]) == 1, "queued again, not submitted"
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        (attempt,) = ledger.attempts(stage_key=checkpoint(home)[0])
        starts = [e.payload for e in ledger.supervision([attempt.attempt_id]) if e.kind == "attempt.started"]
        assert [s["ended"] for s in starts] == ["", "requeued", "", "finished"]
        assert len(starts[0]["nodes"]) == 2
        assert ledger.verify_chain().ok
    assert m4v(here, "run", "micro", *TRAIN, "--until", "train.t2i").wait(1500) == 0
    assert checkpoint(here) == checkpoint(home)
