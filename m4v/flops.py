"""What a model costs: parameters by part, and floating-point operations of one forward as torch counts them.

Everything runs on the meta device: shapes flow through the built modules and no tensor is made.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from m4v.config import ModelConfig
from m4v.flow.packing import history_shape
from m4v.model import M4VTransformer
from m4v.model.layout import Clip, Column

STAGES = 3
# Per token, channel and state place: step times decay, exponential, input, recurrence, carry and read-out, as the
# operations of a selective scan are usually counted.
SCAN_FLOPS = 9
# Part of the model: the beginning and, if it matters, the middle of its parameters' names. The first match counts.
_PARTS = (
    ("embedders", "time_text_embed.", ""),
    ("embedders", "context_embedder.", ""),
    ("embedders", "x_embedder.", ""),
    ("double blocks: attention", "transformer_blocks.", ".attn."),
    ("double blocks: MLP", "transformer_blocks.", ".ff"),
    ("double blocks: AdaLN", "transformer_blocks.", ".norm1"),
    ("single blocks: attention", "single_transformer_blocks.", ".attn."),
    ("single blocks: registers", "single_transformer_blocks.", ".mamba.registers"),
    ("single blocks: mamba", "single_transformer_blocks.", ".mamba."),
    ("single blocks: temporal branch", "single_transformer_blocks.", ".temporal."),
    ("single blocks: MLP and output projection", "single_transformer_blocks.", ".proj_"),
    ("single blocks: AdaLN", "single_transformer_blocks.", ".norm."),
    ("output", "norm_out.", ""),
    ("output", "proj_out.", ""),
)
_MIXERS = {".attn": "attention", ".mamba": "mamba", ".temporal": "temporal branch"}


class Setting(NamedTuple):
    """One forward, batch 1: the last latent frame of a video of `frames` latent frames at one pyramid stage.

    `height`, `width`: latent places of the highest stage. The defaults are 768p (768 x 1280 pixels).
    """

    frames: int
    stage: int = STAGES - 1
    height: int = 96
    width: int = 160

    def column(self, patch: int = 2) -> Column:
        """Clips of the forward in tokens. Raises ValueError when the size has no such pyramid."""
        if self.height % (patch << (STAGES - 1)) or self.width % (patch << (STAGES - 1)):
            raise ValueError(f"{self.height} x {self.width} latent places are no multiple of {patch << (STAGES - 1)}")
        high_h, high_w = self.height // patch, self.width // patch
        shape = [*history_shape(self.stage, self.frames), (self.stage, 1)]
        down = [STAGES - 1 - size for size, _ in shape]
        clips = [Clip(n, high_h >> d, high_w >> d) for (_, n), d in zip(shape, down, strict=True)]
        return Column(self.stage, tuple(clips))


def visible_share(column: Column) -> float:
    """Share of the scores of image tokens that the frame-causal mask keeps.

    The counts hold every score, as dense attention computes them; block-sparse attention (CUDA) computes hardly
    more than this share.
    """
    sizes = [clip.height * clip.width for clip in column.clips for _ in range(clip.frames)]
    return sum(size * sum(sizes[: number + 1]) for number, size in enumerate(sizes)) / sum(sizes) ** 2


class Counted(NamedTuple):
    """Operations (2 per multiply-add) of one forward: its mixers, by part; everything."""

    mixers: dict[str, int]
    forward: int

    @property
    def mixer_total(self) -> int:
        return sum(self.mixers.values())


def meta_model(config: ModelConfig) -> M4VTransformer:
    """The model without memory behind it."""
    with torch.device("meta"):
        return M4VTransformer(config)


def parameters_by_part(model: M4VTransformer) -> dict[str, int]:
    """Parameters of each part that has any, in the order of the forward; their sum is the model's."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = next(part for part, start, middle in _PARTS if name.startswith(start) and middle in name)
        found[part] += parameter.numel()
    return {part: found[part] for part in dict.fromkeys(part for part, _, _ in _PARTS) if part in found}


def count_forward(model: M4VTransformer, setting: Setting) -> Counted:
    """Count one forward of a model on the meta device in `setting`, all text slots in use.

    Matrix products, convolutions and attention (every score of the dense mask) by torch's own counter, the selective
    scan by SCAN_FLOPS; other elementwise work is not counted. It is the plain torch path that is counted; kernel
    libraries on a GPU cut the same sums otherwise. A mixer ends with its output projection: attention's
    own one in the dual-stream blocks, its columns of the shared `proj_out` in the single-stream blocks.
    Of blocks that are built alike one is run and counted for all.
    """
    slim, times = _one_of_each(model)
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with torch.no_grad(), counter:
        slim(**meta_inputs(model.config, setting))
    counts = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    forward, mixers = counter.get_total_flops(), Counter[str]()
    for block, repeats in times.items():
        found = {name.removeprefix(block): n for name, n in counts.items() if name.startswith(block)}
        forward += (repeats - 1) * found[""]
        kind = "double blocks" if ".transformer_blocks." in block else "single blocks"
        for leaf, part in _MIXERS.items():
            if leaf in found:
                mixers[f"{kind}: {part}"] += repeats * found[leaf]
        if kind == "single blocks":
            mixers[f"{kind}: output projection"] += repeats * found[".proj_out"] // (1 + model.config.mlp_ratio)
    return Counted(dict(mixers), forward)


def _one_of_each(model: M4VTransformer) -> tuple[M4VTransformer, dict[str, int]]:
    """The model with one block of every build (equal names and shapes of parameters), and how many each stands for.

    Keys are the blocks' names as torch's counter tells them. The scan path, the only other difference between
    blocks, permutes tokens and costs the same.
    """
    times: dict[str, int] = {}
    slim = copy.copy(model)
    slim._modules = dict(model._modules)
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        builds: dict[tuple[object, ...], list[nn.Module]] = {}
        for block in model.get_submodule(stack).children():
            builds.setdefault(tuple((n, p.shape) for n, p in block.named_parameters()), []).append(block)
        setattr(slim, stack, nn.ModuleList(blocks[0] for blocks in builds.values()))
        names = (f"{type(model).__name__}.{stack}.{number}" for number in range(len(builds)))
        times |= {name: len(blocks) for name, blocks in zip(names, builds.values(), strict=True)}
    return slim, times


def meta_inputs(config: ModelConfig, setting: Setting) -> dict[str, object]:
    """Arguments of the model's forward in `setting`, as shapes."""
    clips = [
        torch.empty(1, config.latent_channels, c.frames, c.height * config.patch, c.width * config.patch, device="meta")
        for c in setting.column(config.patch).clips
    ]
    return {
        "columns": [clips],
        "timesteps": torch.empty(1, device="meta"),
        "text": torch.empty(1, config.text_slots, config.text_dim, device="meta"),
        "text_mask": torch.empty(1, config.text_slots, dtype=torch.bool, device="meta"),
        "pooled": torch.empty(1, config.pooled_dim, device="meta"),
        "stages": [setting.stage],
    }


def formulas() -> dict[object, object]:
    """What torch's counter does not know: our operators, and attention kernels that it leaves out."""
    aten = torch.ops.aten
    return {
        torch.ops.m4v.selective_scan: _scan_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_fused_attention_overrideable: _attention_flops,
    }


def _scan_flops(x: Sequence[int], dt: Sequence[int], a: Sequence[int], *_: object, **__: object) -> int:
    return SCAN_FLOPS * x[0] * x[1] * a[0] * a[1]


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object) -> int:
    flops: int = sdpa_flop_count(q, k, v)
    return flops


def total(model: M4VTransformer) -> int:
    """Parameters of the whole model."""
    return sum(p.numel() for p in model.parameters())
