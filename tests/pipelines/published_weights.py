"""A tiny transformer as PyramidFlow publishes its large ones: `config.json` and one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from m4v.config import ModelConfig
from m4v.model import M4VTransformer

ENTRY, FOLDER = "pyramidflow-dit-768p", "diffusion_transformer_768p"
CONFIG, MODEL = "config.json", "diffusion_pytorch_model.safetensors"
# As the recipe `micro` has it, but for the width of the MLP, which published models fix.
MICRO = ModelConfig(
    width=64, heads=2, double_blocks=1, single_blocks=2, text_dim=384, pooled_dim=384, text_slots=24, mixer="attention"
)


def write_published(root: Path, model: ModelConfig = MICRO, seed: int = 1) -> Path:
    """Write the folder `root`/FOLDER; tensors are random, keyed by the seed. Returns `root`."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in M4VTransformer(model).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}, folder / MODEL)
    config = {
        "_class_name": "PyramidFluxTransformer", "_diffusers_version": "0.30.3", "attention_head_dim": model.head_dim,
        "axes_dims_rope": list(model.axes), "in_channels": 4 * model.latent_channels,
        "joint_attention_dim": model.text_dim, "num_attention_heads": model.heads, "num_layers": model.double_blocks,
        "num_single_layers": model.single_blocks, "patch_size": 1, "pooled_projection_dim": model.pooled_dim,
        "use_temporal_causal": model.use_temporal_causal,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config))
    return root
