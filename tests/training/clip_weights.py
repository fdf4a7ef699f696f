"""CLIP weights drawn at random, in the folder that `m4v weights import` makes of a published state dict."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from m4v.scores.clip_config import ClipTowers
from m4v.weights.record import RECORD, WeightsRecord


def save_clip(folder: Path, entry: str, towers: ClipTowers, generator: torch.Generator) -> None:
    """Drawn on the generator's device and kept in bfloat16. Matrices keep the scale of what they multiply, so that no
    score or gradient fades on its way through the blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, shape in clip_shapes(towers).items():
        drawn = torch.randn(shape, generator=generator, device=generator.device) * (shape or (1,))[-1] ** -0.5
        if len(shape) == 1:
            drawn = torch.ones_like(drawn) if name.endswith("weight") else torch.zeros_like(drawn)
        state[name] = drawn.bfloat16().cpu().contiguous()
    save_file(state, folder / "model.safetensors")
    record = WeightsRecord(
        entry=entry, format="state_dict", hub=None, licence=None, published=False, source=(), tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
    )  # fmt: skip
    (folder / RECORD).write_text(record.model_dump_json())


def clip_shapes(towers: ClipTowers) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a CLIP model as open_clip 3.3.0 and HPSv2 save it."""
    wide, text, out = towers.vision_width, towers.text_width, towers.embed_dim
    places = (towers.image_side // towers.patch) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (wide,), "visual.positional_embedding": (places, wide), "visual.proj": (wide, out),
        "visual.conv1.weight": (wide, 3, towers.patch, towers.patch), "positional_embedding": (towers.context, text),
        "token_embedding.weight": (towers.vocabulary, text), "text_projection": (text, out), "logit_scale": (),
    }  # fmt: skip
    for norm, width in (("visual.ln_pre", wide), ("visual.ln_post", wide), ("ln_final", text)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for before, width, layers in (("visual.", wide, towers.vision_layers), ("", text, towers.text_layers)):
        for layer in range(layers):
            block = f"{before}transformer.resblocks.{layer}"
            parts = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width),
                     "mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}  # fmt: skip
            for part, shape in parts.items():
                shapes |= {f"{block}.{part}weight": shape, f"{block}.{part}bias": shape[:1]}
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    return shapes
