"""A tiny real checkpoint artifact, with weights that make prompts matter."""

from __future__ import annotations

from pathlib import Path

import torch
from eval_support import publish

from m4v.checkpoint import save_checkpoint
from m4v.codec.config import DctCodecConfig
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.model import build_model
from m4v.text.config import MiniLmConfig

MODEL = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=16,
)  # fmt: skip
SAMPLER = {
    "steps_first": [2, 1, 1], "steps_later": [1, 1, 1], "guidance_first": 2.0, "guidance_later": 2.0,
    "prompt_suffix": "", "negative_prompt": "",
}  # fmt: skip


def tiny_checkpoint(directory: Path) -> Artifact:
    config = CheckpointConfig(
        model=MODEL, schedule=ScheduleConfig(),
        codec=DctCodecConfig().canonical(), text_encoder=MiniLmConfig(slots=16).canonical(),
    )  # fmt: skip
    model = build_model(MODEL, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # the output layers start at zero
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_checkpoint(directory, config, model.state_dict())
    return publish(directory, ArtifactKind.CHECKPOINT)
