"""Checkpoint folders: what is written is what is read, and anything else is named and refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from m4v.checkpoint import CONFIG, EMA, MODEL, export_checkpoint, load_checkpoint, read_config, save_checkpoint
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.errors import DataIntegrityError, InputError
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
    save_checkpoint(tmp_path / "made", CHECKPOINT, state, ema={k: v + 0.01 for k, v in state.items()})
    return tmp_path / "made"


def test_round_trip(folder: Path) -> None:
    state = build_model(CHECKPOINT.model, 1).state_dict()
    model, config = load_checkpoint(folder.joinpath, ema=False)
    assert config == CHECKPOINT.model_copy(update={"ema": True})
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    averaged, _ = load_checkpoint(folder.joinpath)
    assert torch.equal(averaged.state_dict()[KEY], state[KEY] + 0.01)
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
    save_checkpoint(again, CHECKPOINT, halves, ema={k: v + 0.01 for k, v in state.items()})
    for name in (MODEL, EMA, CONFIG):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_weights_can_be_read_by_whoever_may_read_the_configuration(folder: Path) -> None:
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / CONFIG).stat().st_mode}


def change(folder: Path, edit) -> None:  # type: ignore[no-untyped-def]
    state = load_file(folder / MODEL)
    edit(state)
    save_file(state, folder / MODEL)


def refused(folder: Path) -> str:
    with pytest.raises(DataIntegrityError) as caught:
        load_checkpoint(folder.joinpath, ema=False)
    assert "\n" not in str(caught.value)
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


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": Bomb()}))


def as_torch_file(path: Path) -> None:
    torch.save({"weights": Bomb()}, path)


@pytest.mark.parametrize("write", [as_pickle, as_torch_file])
def test_a_pickle_named_safetensors_is_not_executed(
    folder: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], None]
) -> None:
    (folder / MODEL).unlink()
    write(folder / MODEL)
    message = refused(folder)
    assert "pickled file" in message
    assert str(folder / MODEL) in message
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "last.ckpt"])
@pytest.mark.parametrize("instead", [False, True], ids=["beside", "instead"])
def test_a_folder_with_a_pickled_file_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, instead: bool
) -> None:
    as_torch_file(folder / name)
    if instead:
        (folder / MODEL).unlink()
    message = refused(folder)
    assert f"'{name}' (in {folder})" in message
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "truncated"), (b"\x00" * 64, "not in safetensors format"), (b"not weights at all", "truncated")],
)
def test_other_bytes_are_refused(folder: Path, content: bytes, words: str) -> None:
    (folder / MODEL).write_bytes(content)
    message = refused(folder)
    assert words in message
    assert MODEL in message


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
def test_damage_anywhere_in_the_header_is_refused_or_harmless(folder: Path, data: st.DataObject) -> None:
    """One wrong byte, or an end too early: a message about this file, or the tensors that the header still names."""
    whole = (folder / EMA).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.integers(0, header - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    (folder / MODEL).write_bytes(damaged if data.draw(st.booleans()) else whole[: data.draw(st.integers(0, header))])
    message = MODEL
    try:
        load_checkpoint(folder.joinpath, ema=False)
    except DataIntegrityError as error:
        message = str(error)
    assert MODEL in message
    assert "\n" not in message


def test_integer_weights_are_named(folder: Path) -> None:
    change(folder, lambda state: state.update({KEY: torch.ones(2, dtype=torch.int64)}))
    assert f"no floating-point numbers: ['{KEY}: I64']" in refused(folder)


def test_damaged_averaged_weights_are_refused_too(folder: Path) -> None:
    whole = (folder / EMA).read_bytes()
    (folder / EMA).write_bytes(whole[:-1])
    with pytest.raises(DataIntegrityError, match=EMA):
        load_checkpoint(folder.joinpath)
    assert load_checkpoint(folder.joinpath, ema=False)


def test_missing_configuration_is_named(folder: Path) -> None:
    (folder / CONFIG).unlink()
    assert f"no such file: '{CONFIG}'" in refused(folder)
    (folder / CONFIG).write_bytes(b"\xff{")
    assert "configuration is not valid: (root)" in refused(folder)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_is_one_set_of_weights(folder: Path, tmp_path: Path, ema: bool, dtype: torch.dtype) -> None:
    out = tmp_path / "exported"
    export_checkpoint(folder.joinpath, out, ema=ema, dtype=dtype)
    assert sorted(p.name for p in out.iterdir()) == [CONFIG, MODEL]
    stored = load_file(out / MODEL)
    exact = {key for key, value in stored.items() if value.dtype == torch.float32}
    recurrence = {key for key in stored if key.endswith((".A_log", ".dt_bias", ".D"))}
    assert len(recurrence) == 3
    assert exact == (recurrence if dtype == torch.bfloat16 else set(stored))
    source = load_file(folder / (EMA if ema else MODEL))
    assert all(torch.equal(value, source[key].to(value.dtype)) for key, value in stored.items())
    model, config = load_checkpoint(out.joinpath)
    assert config == read_config(folder / CONFIG).model_copy(update={"ema": False})
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "any stored type can be computed with"
    assert all(torch.equal(value, stored[key].float()) for key, value in model.state_dict().items())
    with safe_open(out / MODEL, framework="pt") as file:
        assert file.metadata() == {"weights": "ema" if ema else "raw"}


def test_exports_are_equal_bytes_and_can_be_computed_with(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_checkpoint(folder.joinpath, tmp_path / name, dtype=torch.bfloat16)
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "two" / MODEL).read_bytes()
    model, _ = load_checkpoint((tmp_path / "one").joinpath, dtype=torch.bfloat16)
    kinds = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
    assert (kinds["weight"], kinds["A_log"], kinds["dt_bias"], kinds["D"]) == (torch.bfloat16, *[torch.float32] * 3)
    text = torch.randn(1, 4, 8).bfloat16(), torch.ones(1, 4), torch.randn(1, 6).bfloat16()
    (out,) = model([[torch.randn(1, 4, 1, 8, 8).bfloat16()]], torch.tensor([500.0]), *text, stages=[2])
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="new or empty folder"):
        export_checkpoint(folder.joinpath, folder)
    with pytest.raises(InputError, match=r"float32 or bfloat16: 'torch.float16'"):
        export_checkpoint(folder.joinpath, tmp_path / "half", dtype=torch.float16)
    plain = tmp_path / "plain"
    save_checkpoint(plain, CHECKPOINT, build_model(CHECKPOINT.model).state_dict())
    with pytest.raises(InputError, match="no averaged weights"):
        export_checkpoint(plain.joinpath, tmp_path / "none", ema=True)
    export_checkpoint(plain.joinpath, tmp_path / "raw")
    (folder / MODEL).write_bytes(b"")
    with pytest.raises(DataIntegrityError, match=MODEL):
        export_checkpoint(folder.joinpath, tmp_path / "broken", ema=False)
    assert not (tmp_path / "half").exists()
    assert not (tmp_path / "broken").exists()


def test_the_readme_says_how_to_use_a_checkpoint_in_python(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of that section, run as they stand on a tiny checkpoint."""
    section = (Path(__file__).parents[2] / "README.md").read_text().split("### Load a checkpoint in Python")[1]
    lines = section.split("```python\n")[1].split("```")[0]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder.rename(Path("checkpoint").absolute())
    names: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert names["velocity"].isfinite().all()  # type: ignore[attr-defined]
    assert load_checkpoint(Path("exported").joinpath)


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
