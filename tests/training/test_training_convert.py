"""Stage `convert`: a trained attention checkpoint becomes one with state-space mixers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_helpers import TEXT, publish, request

from m4v.checkpoint import load_checkpoint, read_config
from m4v.config import ModelConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext
from training.config import ConvertConfig, InitConfig
from training.exposure import ExposureState
from training.stages import convert, init

MAMBA = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=2, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
ATTENTION = MAMBA.model_copy(update={"mixer": "attention"})


def start(tmp_path: Path, model: ModelConfig) -> tuple[str, Path]:
    context = StageContext(request("init", InitConfig(model=model, text_encoder=TEXT), tmp_path / "init"))
    init.run(context)
    return publish(context)


def converted(tmp_path: Path, begun: tuple[str, Path], config: ConvertConfig) -> Path:
    inputs = [("checkpoint", ArtifactKind.CHECKPOINT, *begun)]
    context = StageContext(request("convert", config, tmp_path / "convert", inputs))
    convert.run(context)
    return publish(context)[1]


def test_attention_weights_start_the_mixers_and_the_rest_is_kept(tmp_path: Path) -> None:
    begun = start(tmp_path, ATTENTION)
    directory = converted(tmp_path, begun, ConvertConfig(model=MAMBA))
    before, _ = load_checkpoint(begun[1].joinpath)
    after, config = load_checkpoint(directory.joinpath)
    assert config.model == MAMBA
    assert config.text_encoder == read_config(begun[1] / "config.json").text_encoder
    old, new = before.state_dict(), after.state_dict()
    block = "single_transformer_blocks.1"
    assert torch.equal(new[f"{block}.mamba.to_c.weight"], old[f"{block}.attn.to_q.weight"])
    assert torch.equal(new[f"{block}.proj_mlp.weight"], old[f"{block}.proj_mlp.weight"])
    state = ExposureState.model_validate_json((directory / "training.json").read_bytes())
    assert (state.stage, state.init_from, state.cursor, state.dataset_id) == ("convert", begun[0], 0, None)


def test_only_attention_is_converted_and_sizes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixes with mm_dim"):
        converted(tmp_path, start(tmp_path / "mamba", MAMBA), ConvertConfig(model=MAMBA))
    wider = MAMBA.model_copy(update={"mlp_ratio": 3})
    with pytest.raises(ConfigError, match=r"model.mlp_ratio is not that of the checkpoint"):
        converted(tmp_path, start(tmp_path / "attention", ATTENTION), ConvertConfig(model=wider))
