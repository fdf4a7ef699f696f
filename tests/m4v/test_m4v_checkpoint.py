"""Checkpoint folders: what is written is what is read, and anything else is named and refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m4v.checkpoint import CONFIG, EMA, MODEL, load_checkpoint, save_checkpoint
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.errors import DataIntegrityError
from m4v.model import build_model

CHECKPOINT = CheckpointConfig(
    model=ModelConfig(
        width=32, heads=2, double_blocks=1, single_blocks=1, latent_channels=4, text_dim=8, pooled_dim=6, text_slots=4
    ),
    schedule=ScheduleConfig(),
    codec={"kind": "dct", "quality": 3},
    text_encoder={"kind": "minilm"},
)
KEY = "single_transformer_blocks.0.mamba.A_log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = build_model(CHECKPOINT.model, 1).state_dict()
    save_checkpoint(tmp_path, CHECKPOINT, state, ema={k: v + 1 for k, v in state.items()})
    return tmp_path


def test_round_trip(folder: Path) -> None:
    state = build_model(CHECKPOINT.model, 1).state_dict()
    model, config = load_checkpoint(folder.joinpath, ema=False)
    assert config == CHECKPOINT.model_copy(update={"ema": True})
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    averaged, _ = load_checkpoint(folder.joinpath)
    assert torch.equal(averaged.state_dict()[KEY], state[KEY] + 1)
    assert all(p.requires_grad for p in model.parameters())


def test_without_ema_the_raw_weights_are_taken(tmp_path: Path) -> None:
    state = build_model(CHECKPOINT.model, 2).state_dict()
    save_checkpoint(tmp_path, CHECKPOINT, state)
    model, config = load_checkpoint(tmp_path.joinpath, ema=True)
    assert not config.ema
    assert torch.equal(model.state_dict()[KEY], state[KEY])
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, MODEL]


def test_equal_weights_give_equal_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    state = build_model(CHECKPOINT.model, 1).state_dict()
    halves = {key: state[key].double() for key in reversed(state)}
    save_checkpoint(again, CHECKPOINT, halves, ema={k: v + 1 for k, v in state.items()})
    for name in (MODEL, EMA, CONFIG):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def change(folder: Path, edit) -> None:  # type: ignore[no-untyped-def]
    state = load_file(folder / MODEL)
    edit(state)
    save_file(state, folder / MODEL)


def refused(folder: Path) -> str:
    with pytest.raises(DataIntegrityError) as caught:
        load_checkpoint(folder.joinpath, ema=False)
    return str(caught.value)


def test_missing_key_is_named(folder: Path) -> None:
    change(folder, lambda state: state.pop(KEY))
    message = refused(folder)
    assert "1 tensors are missing" in message
    assert KEY in message


def test_unknown_key_is_named(folder: Path) -> None:
    change(folder, lambda state: state.update(extra=torch.ones(1)))
    assert "not part of this model: ['extra']" in refused(folder)


def test_wrong_shape_is_named(folder: Path) -> None:
    change(folder, lambda state: state.update({KEY: torch.ones(5)}))
    assert f"{KEY}: (5,), expected (2,)" in refused(folder)


def test_truncated_file_is_named(folder: Path) -> None:
    whole = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(whole[: len(whole) // 2])
    message = refused(folder)
    assert "truncated" in message
    assert MODEL in message


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_pickled_code_is_not_executed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / MODEL).write_bytes(pickle.dumps(Bomb()))
    assert "not in safetensors format" in refused(folder)
    (folder / MODEL).unlink()
    torch.save({"weights": Bomb()}, folder / MODEL)
    assert "not in safetensors format" in refused(folder)
    assert "executed" not in capsys.readouterr().out


def test_missing_file_is_named(folder: Path) -> None:
    (folder / MODEL).unlink()
    assert f"no such file: '{MODEL}'" in refused(folder)


def test_bad_configuration_is_named(folder: Path) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    raw["model"]["heads"] = 5
    (folder / CONFIG).write_text(json.dumps(raw))
    assert "not a multiple of heads" in refused(folder)


def test_weights_of_another_model_are_not_saved(tmp_path: Path) -> None:
    state = build_model(CHECKPOINT.model).state_dict()
    state.pop(KEY)
    with pytest.raises(DataIntegrityError, match="missing"):
        save_checkpoint(tmp_path, CHECKPOINT, state)
    assert list(tmp_path.iterdir()) == []
