"""A home in which micro ran up to its dataset, with small shards, and copies of it to take clips down in."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from takedown_home import SETTINGS, TakedownHome


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of a finished run up to `encode`; look, do not touch."""
    home = tmp_path_factory.mktemp("encoded") / "home"
    command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(home), "run", "micro", "--no-prefect"]
    ran = subprocess.run(
        [*command, "--until", "encode", *SETTINGS],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Iterator[TakedownHome]:
    shutil.copytree(finished, tmp_path / "home", symlinks=True)
    with TakedownHome.open(tmp_path / "home") as opened:
        yield opened
