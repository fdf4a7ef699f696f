"""Checkpoints of the Wan variant: round trips, equal bytes, refusals."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from wan_cases import config_of

from m4v.core.errors import DataIntegrityError
from m4v.wan.checkpoint import WanCheckpointConfig, load_wan, save_wan
from m4v.wan.initialise import build_wan


def output(model: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    latents, text = torch.randn(2, 4, 2, 4, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)
    return model(latents, torch.tensor([4.0, 800.0]), text).sample


@pytest.mark.parametrize("mixer", ["attention", "mm_dim"])
def test_checkpoints_come_back(tmp_path: Path, mixer: str) -> None:
    model, other = build_wan(config_of(mixer=mixer), 1), build_wan(config_of(mixer=mixer), 2)
    config = WanCheckpointConfig(model=model.wan)
    save_wan(tmp_path, config, model.state_dict(), other.state_dict())
    raw, found = load_wan(tmp_path.joinpath, ema=False)
    averaged, _ = load_wan(tmp_path.joinpath)
    assert found == config.model_copy(update={"ema": True})
    for loaded, source in ((raw, model), (averaged, other)):
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
        assert torch.equal(output(loaded), output(source))


def test_equal_checkpoints_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_wan(tmp_path / name, WanCheckpointConfig(model=config_of()), build_wan(config_of(), 1).state_dict())
    files = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    config = WanCheckpointConfig(model=config_of())
    state = dict(build_wan(config_of(), 1).state_dict())
    with pytest.raises(DataIntegrityError, match=r"1 tensors are missing.*text_scale"):
        save_wan(tmp_path, config, {k: v for k, v in state.items() if k != "blocks.0.attn1.text_scale"})
    save_wan(tmp_path, config, state)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(DataIntegrityError, match="truncated"):
        load_wan(tmp_path.joinpath)
    (tmp_path / "optimizer.pt").write_bytes(b"cos")
    with pytest.raises(DataIntegrityError, match=r"pickled file.*'optimizer\.pt'"):
        load_wan(tmp_path.joinpath)
    (tmp_path / "optimizer.pt").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model": {"kind": "wan", "widht": 3}}))
    with pytest.raises(DataIntegrityError, match="widht"):
        load_wan(tmp_path.joinpath)


def test_equal_seeds_give_equal_weights() -> None:
    first, second, other = (build_wan(config_of(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["patch_embedding.weight"], other["patch_embedding.weight"])
