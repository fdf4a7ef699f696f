"""Gangs forked for tests: nothing of them outlives its agent, its nursery or whoever opened that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from training_nursery import REPOSITORY, Nursery

PATIENCE_S = 300
SLEEPER = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / f"part.{os.getpid()}").write_text(f"{os.getppid()}")
(folder / f"part.{os.getpid()}").rename(folder / f"{os.getpid()}.rank")
time.sleep(3600)
"""
OPENER = """
import os, sys, time
from pathlib import Path
from training_nursery import nursery_of_ranks
script, folder, then = sys.argv[1:]
with nursery_of_ranks(()) as nursery:
    gang = nursery.start(2, [script, folder], Path(folder, "output.log"))
    Path(folder, "above").write_text(f"{nursery.process.pid} {gang.pid}")
    while len(list(Path(folder).glob("*.rank"))) < 2:
        time.sleep(0.02)
    if then == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    """Ranks that tell their number and sleep for an hour."""
    path = tmp_path / "sleeper.py"
    path.write_text(SLEEPER)
    return str(path)


def ranks(folder: Path) -> list[psutil.Process]:
    return [psutil.Process(int(p.stem)) for p in folder.glob("*.rank")]


def all_go(processes: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := [pid for pid in processes if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_ranks_go_with_their_agent(nursery: Nursery, script: str, tmp_path: Path) -> None:
    gang = nursery.start(2, [script, str(tmp_path)], tmp_path / "output.log")
    deadline = time.monotonic() + PATIENCE_S
    while len(list(tmp_path.glob("*.rank"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = ranks(tmp_path)
    assert {p.ppid() for p in found} == {gang.pid}
    psutil.Process(gang.pid).kill()
    assert gang.wait() == -9
    all_go([p.pid for p in found])
    nursery.run(1, [_nothing(tmp_path)], tmp_path / "after.log")  # the nursery goes on


def _nothing(folder: Path) -> str:
    path = folder / "nothing.py"
    path.write_text("pass\n")
    return str(path)


@pytest.mark.parametrize("then", ["killed", "left"])
def test_a_gang_at_work_goes_with_whoever_opened_its_nursery(script: str, tmp_path: Path, then: str) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    command = [sys.executable, "-c", OPENER, script, str(tmp_path), then]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=PATIENCE_S, check=False)
    assert done.returncode == (-9 if then == "killed" else 0)
    above = [int(n) for n in (tmp_path / "above").read_text().split()]
    all_go([*above, *(int(p.stem) for p in tmp_path.glob("*.rank"))])
