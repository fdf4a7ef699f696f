"""A home in which micro ran up to its dataset, with small shards, and copies of it to take clips down in."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from takedown_home import SETTINGS, TakedownHome


@pytest.fixture(scope="session")
def finished(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Home of a finished run up to `encode`, made once for all workers; look, do not touch."""

    def run(place: Path) -> None:
        command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(place / "home"), "run", "micro"]
        ran = subprocess.run(
            [*command, "--no-prefect", "--until", "encode", *SETTINGS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]

    return made_once("takedown", run) / "home"


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Iterator[TakedownHome]:
    shutil.copytree(finished, tmp_path / "home", symlinks=True)
    with TakedownHome.open(tmp_path / "home") as opened:
        yield opened
