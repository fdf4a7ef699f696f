"""A damaged or pickled checkpoint given to `m4v generate`: one line that names it, class 20, nothing executed."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m4v.checkpoint import MODEL, save_checkpoint
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.errors import ExitClass
from m4v.model import build_model
from pipelines.cli.main import main

KEY = "single_transformer_blocks.0.mamba.A_log"
TINY = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=4
)  # fmt: skip


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (open, (str(self.witness), "w"))


def edited(folder: Path, **changes: torch.Tensor | None) -> None:
    state = {key: value for key, value in (load_file(folder / MODEL) | changes).items() if value is not None}
    save_file(state, folder / MODEL)


def missing_key(folder: Path) -> None:
    edited(folder, **{KEY: None})


def wrong_shape(folder: Path) -> None:
    edited(folder, **{KEY: torch.ones(7)})


def truncated(folder: Path) -> None:
    whole = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(whole[:-100])


def pickled(folder: Path) -> None:
    (folder / MODEL).write_bytes(pickle.dumps(Bomb(folder / "executed")))


def pickle_instead(folder: Path) -> None:
    (folder / MODEL).unlink()
    torch.save({"weights": Bomb(folder / "executed")}, folder / "pytorch_model.bin")


def pickle_beside(folder: Path) -> None:
    torch.save({"weights": Bomb(folder / "executed")}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing_key, [KEY, "missing", MODEL]),
        (wrong_shape, [f"{KEY}: (7,), expected (2,)", MODEL]),
        (truncated, ["truncated", MODEL]),
        (pickled, ["pickled", MODEL]),
        (pickle_instead, ["pickled", "pytorch_model.bin"]),
        (pickle_beside, ["pickled", "pytorch_model.bin"]),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: list[str],
) -> None:
    folder = tmp_path / "checkpoint"
    config = CheckpointConfig(
        model=TINY, schedule=ScheduleConfig(), codec={"kind": "dct"}, text_encoder={"kind": "minilm", "slots": 4}
    )
    save_checkpoint(folder, config, build_model(TINY).state_dict())
    damage(folder)
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    arguments = ["generate", str(folder), "--prompt", "x", "--out", str(tmp_path / "out")]
    size = ["--frames", "9", "--height", "64", "--width", "64", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["m4v", *arguments, *size])
    with pytest.raises(SystemExit) as ended:
        main()
    assert int(ended.value.code or 0) == ExitClass.DATA_INTEGRITY
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert all(word in error for word in words), error
    assert not (folder / "executed").exists()
