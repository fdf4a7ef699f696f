"""Attention models go back into the published layouts, and diffusers reads them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from wan_cases import config_of

from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.wan.config import WanConfig
from m4v.wan.export import WEIGHTS, export_published
from m4v.wan.initialise import build_wan
from m4v.wan.published import open_published


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exported_folders_read_back(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    state = build_wan(config_of(mixer="attention"), 1).state_dict()
    export_published(tmp_path / "out", config_of(mixer="attention"), state, layout, dtype)
    found = open_published(tmp_path / "out")
    assert found.layout == layout
    slots = 512 if layout == "diffusers" else 5  # diffusers' config does not say
    unsaid = {"text_slots": slots, "chunk_size": WanConfig().chunk_size}  # attention has no chunks
    assert found.config == config_of(mixer="attention").model_copy(update=unsaid)
    back = found.stored()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value.to(dtype)) for key, value in state.items())


def test_diffusers_reads_the_export(tmp_path: Path) -> None:
    model = build_wan(config_of(mixer="attention"), 1)
    export_published(tmp_path / "out", model.wan, model.state_dict())
    theirs = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(tmp_path / "out"))
    theirs.load_state_dict(load_file(tmp_path / "out" / WEIGHTS))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.state_dict().items())
    for name, value in model.config.items():
        if not name.startswith("_"):
            assert theirs.config[name] == (list(value) if isinstance(value, tuple) else value)


def test_original_export_has_the_original_names(tmp_path: Path) -> None:
    export_published(
        tmp_path, config_of(mixer="attention"), build_wan(config_of(mixer="attention"), 1).state_dict(), "original"
    )
    header = (tmp_path / WEIGHTS).read_bytes()
    assert b'"blocks.1.self_attn.q.weight"' in header
    assert b'"head.modulation"' in header
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "WanModel"


def test_what_has_no_published_form_is_refused(tmp_path: Path) -> None:
    state = build_wan(config_of(mixer="attention"), 1).state_dict()
    with pytest.raises(ConfigError, match="only attention models"):
        export_published(tmp_path / "a", config_of(mixer="mm_dim"), state)
    with pytest.raises(DataIntegrityError, match=r"tensors are missing.*'proj_out.bias'"):
        export_published(
            tmp_path / "a", config_of(mixer="attention"), {k: v for k, v in state.items() if k != "proj_out.bias"}
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="new or empty folder"):
        export_published(tmp_path, config_of(mixer="attention"), state)
