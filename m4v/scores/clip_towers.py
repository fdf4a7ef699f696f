"""The two towers of a CLIP model, of transformers' classes, from a state dict under open_clip's names.

HPSv2 has the same names. transformers needs no torchvision, which open_clip imports and which must match torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.scores.clip_config import ClipTowers

_VISION = "visual."
_UNUSED = {"logit_scale", "logit_bias"}  # scores are plain cosines
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
}
_INSIDE = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_TRANSPOSED = {"visual.proj", "text_projection"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def vision_tower(towers: ClipTowers, weights: Path, dtype: torch.dtype, *, checkpointing: bool) -> nn.Module:
    """Pixels (B, 3, side, side) to `.image_embeds` (B, embed_dim). Frozen; gradients flow to the pixels.

    Raises InputError, DataIntegrityError or ConfigError when the file is missing, damaged or of other sizes.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=towers.vision_width, num_hidden_layers=towers.vision_layers,
        num_attention_heads=towers.vision_heads, intermediate_size=4 * towers.vision_width, patch_size=towers.patch,
        image_size=towers.image_side, projection_dim=towers.embed_dim, hidden_act=towers.activation,
        attn_implementation="sdpa",
    )  # fmt: skip
    tower = _load(CLIPVisionModelWithProjection, config, _read(weights, vision=True), weights, dtype)
    if checkpointing:
        # The library checkpoints in training mode only; it has no dropout here, so nothing else changes.
        enable: Any = getattr(tower, "activation_checkpointing_enable", None)  # its name from transformers 5.20 on
        older: Any = tower.gradient_checkpointing_enable
        (enable or older)({"use_reentrant": False})
        tower.train()
    return tower


def text_tower(towers: ClipTowers, weights: Path, dtype: torch.dtype, end: int) -> nn.Module:
    """Ids (n, context) to `.text_embeds` (n, embed_dim), taken at the first token `end`. Raises as `vision_tower`."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=towers.text_width, num_hidden_layers=towers.text_layers, num_attention_heads=towers.text_heads,
        intermediate_size=4 * towers.text_width, vocab_size=towers.vocabulary,
        max_position_embeddings=towers.context, projection_dim=towers.embed_dim, hidden_act=towers.activation,
        eos_token_id=end, attn_implementation="sdpa",
    )  # fmt: skip
    return _load(CLIPTextModelWithProjection, config, _read(weights, vision=False), weights, dtype)


def _load(made_by: Any, config: Any, tensors: Mapping[str, Tensor], where: Path, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        tower: nn.Module = made_by(config)
    own = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    has = {key: tuple(value.shape) for key, value in tensors.items()}
    if own != has:
        wrong = sorted(key for key in own.keys() | has.keys() if own.get(key) != has.get(key))
        raise ConfigError(
            "CLIP weights are not of the sizes that `towers` states", value=wrong[:5], where=str(where),
            next_step="set `towers` to the sizes of this model",
        )  # fmt: skip
    tower.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, assign=True)
    for module in tower.modules():  # position ids are counted, not stored
        ids = module._buffers.get("position_ids")
        if ids is not None and ids.is_meta:
            module.register_buffer("position_ids", torch.arange(ids.shape[-1])[None], persistent=False)
    return tower.eval().requires_grad_(False)


def _read(path: Path, *, vision: bool) -> dict[str, Tensor]:
    """Tensors of one tower under transformers' names."""
    if not path.is_file():
        raise InputError("CLIP weights are not here", value=path.name, where=str(path.parent))
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key not in _UNUSED and key.startswith(_VISION) == vision:
                    found.update(_renamed(key, file.get_tensor(key)))
    except SafetensorError as error:
        raise DataIntegrityError(
            f"CLIP weights cannot be read: {error}", where=str(path), next_step="m4v artifacts verify"
        ) from None
    return found


def _renamed(key: str, value: Tensor) -> dict[str, Tensor]:
    if key in _TRANSPOSED:
        return {_OUTSIDE[key]: value.T.contiguous()}
    if key in _OUTSIDE:
        return {_OUTSIDE[key]: value}
    block = _BLOCK.fullmatch(key)
    stem, _, kind = (block[3] if block else key).rpartition(".")
    if not block:
        return {f"{_OUTSIDE.get(stem, stem)}.{kind}": value}
    layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
    if block[3].startswith("attn.in_proj_"):
        kind = block[3].removeprefix("attn.in_proj_")
        return {f"{layer}.self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", value.chunk(3), strict=True)}
    return {f"{layer}.{_INSIDE.get(stem, stem.replace('attn.', 'self_attn.'))}.{kind}": value}
