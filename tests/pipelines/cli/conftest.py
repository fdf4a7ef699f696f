"""Fixtures of the command line's tests: a tiny checkpoint to sample from, and the console entry point."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))
sys.path.insert(0, str(Path(__file__).parents[2] / "m4v"))

from eval_checkpoint import tiny_checkpoint

from m4v.core.artifacts import Artifact
from pipelines.cli.main import main

M4v = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def folder(checkpoint: Artifact) -> str:
    return str(checkpoint.storage.local_root)


@pytest.fixture
def m4v(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> M4v:
    """The console entry point in this process, on an empty home: (exit code, stdout, stderr)."""
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def m4v_here(m4v: M4v, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> M4v:
    """The same in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return m4v
