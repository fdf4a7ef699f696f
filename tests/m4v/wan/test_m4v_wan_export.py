"""Attention models go back into the published layouts, and diffusers reads them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.wan.config import WanConfig
from m4v.wan.export import WEIGHTS, export_published
from m4v.wan.initialise import build_wan
from m4v.wan.published import open_published

SIZES = {
    "width": 24, "heads": 2, "blocks": 2, "mlp_width": 40, "latent_channels": 4, "text_dim": 6, "text_slots": 5,
    "frequency_dim": 16,
}  # fmt: skip


def config_of(mixer: str) -> WanConfig:
    return WanConfig.model_validate(SIZES | {"mixer": mixer})


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exported_folders_read_back(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    state = build_wan(config_of("attention"), 1).state_dict()
    export_published(tmp_path / "out", config_of("attention"), state, layout, dtype)
    found = open_published(tmp_path / "out")
    assert found.layout == layout
    slots = 512 if layout == "diffusers" else 5  # diffusers' config does not say
    assert found.config == config_of("attention").model_copy(update={"text_slots": slots})
    back = found.stored()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value.to(dtype)) for key, value in state.items())


def test_diffusers_reads_the_export(tmp_path: Path) -> None:
    model = build_wan(config_of("attention"), 1)
    export_published(tmp_path / "out", model.wan, model.state_dict())
    theirs = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(tmp_path / "out"))
    theirs.load_state_dict(load_file(tmp_path / "out" / WEIGHTS))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.state_dict().items())
    for name, value in model.config.items():
        if not name.startswith("_"):
            assert theirs.config[name] == (list(value) if isinstance(value, tuple) else value)


def test_original_export_has_the_original_names(tmp_path: Path) -> None:
    export_published(tmp_path, config_of("attention"), build_wan(config_of("attention"), 1).state_dict(), "original")
    header = (tmp_path / WEIGHTS).read_bytes()
    assert b'"blocks.1.self_attn.q.weight"' in header
    assert b'"head.modulation"' in header
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "WanModel"


def test_what_has_no_published_form_is_refused(tmp_path: Path) -> None:
    state = build_wan(config_of("attention"), 1).state_dict()
    with pytest.raises(ConfigError, match="only attention models"):
        export_published(tmp_path / "a", config_of("mm_dim"), state)
    with pytest.raises(DataIntegrityError, match=r"tensors are missing.*'proj_out.bias'"):
        export_published(
            tmp_path / "a", config_of("attention"), {k: v for k, v in state.items() if k != "proj_out.bias"}
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="new or empty folder"):
        export_published(tmp_path, config_of("attention"), state)
