"""Tables 3 and 4 of the paper: parameters and mixer TFLOPs of every architecture, beside the printed figures.

Two figures stand side by side and are never fitted to each other: the *convention* that reproduces the paper's
numbers, a closed form, and what torch *counts* in the built modules.

The convention: 2 operations per multiply-add; one forward, batch 1, of the last latent frame at the highest stage of
768p; all 24 mixers, the dual-stream attentions included; image tokens only; every attention score, masked or not;
attention with its output projection, Mamba without one; no MLP, AdaLN, embedding, norm or rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from m4v.config import ModelConfig
from m4v.flops import SCAN_FLOPS, Setting, count_forward, meta_model, total

Ssm = Literal["ssd", "mamba1"]
LENGTHS = {121: 16, 241: 31}  # pixel frames -> latent frames
SSD_FLOPS = 5  # per token, channel and state place: decay; input, add; read-out, add
PAPER_PRESET: dict[str, Any] = {"state_size": 16, "dt_rank": 64}


class Published(NamedTuple):
    """A row of Table 4: billions of parameters, mixer TFLOPs for 121 and 241 frames."""

    params_b: float
    tflops: Mapping[int, float]


TABLE4: dict[str, tuple[dict[str, Any], Published]] = {
    "Full Attn": ({"mixer": "attention"}, Published(1.97, {121: 33.84, 241: 55.44})),
    "Parallel": ({"mixer": "parallel", "temporal_branch": False}, Published(2.21, {121: 50.19, 241: 82.03})),
    "Post-half": ({"mixer": "post_half", "temporal_branch": False}, Published(2.00, {121: 25.20, 241: 41.04})),
    "Pre-half": ({"mixer": "pre_half", "temporal_branch": False}, Published(2.00, {121: 25.20, 241: 41.04})),
    "Interleaved": ({"mixer": "interleaved", "temporal_branch": False}, Published(2.00, {121: 25.20, 241: 41.04})),
    "Full": ({"mixer": "mm_dim", "temporal_branch": False}, Published(2.04, {121: 16.35, 241: 26.64})),
    "Full+Temp": ({"mixer": "mm_dim", "temporal_branch": True}, Published(2.21, {121: 18.80, 241: 29.52})),
}
TABLE3: dict[str, dict[str, Any]] = {
    "none": {"text_recomposition": False, "registers": False, "temporal_branch": False},
    "Text": {"text_recomposition": True, "registers": False, "temporal_branch": False},
    "Vis": {"text_recomposition": False, "registers": True, "temporal_branch": False},
    "Text+Vis": {"text_recomposition": True, "registers": True, "temporal_branch": False},
    "Text+Vis+Temp": {"text_recomposition": True, "registers": True, "temporal_branch": True},
}


def variant(ssm: Ssm, switches: Mapping[str, Any]) -> ModelConfig:
    """Full-size model with one architecture's switches; `mamba1` is the paper's preset, `ssd` the product's."""
    preset = PAPER_PRESET if ssm == "mamba1" else {}
    return ModelConfig.model_validate({"ssm": ssm} | preset | dict(switches))


def mixer_flops(config: ModelConfig, setting: Setting) -> int:
    """Operations of all mixers by the convention of this module's docstring."""
    column = setting.column(config.patch)
    frames_in = column.frames if config.registers else 0
    attention = _attention(config.width, column.tokens)
    mamba = _mamba(config, column.tokens + frames_in)
    if config.temporal_branch:
        lowest = column.lowest[0] * column.lowest[1]
        mamba += _temporal(config.width, column.frames - 1 + (1 << 2 * setting.stage), lowest)
    per_block = {"attention": attention, "mm_dim": mamba}
    single = sum(per_block[mixer] for block in range(config.single_blocks) for mixer in config.mixers(block))
    return config.double_blocks * attention + single


def _attention(width: int, tokens: int) -> int:
    return 4 * tokens**2 * width + 8 * tokens * width**2


def _mamba(config: ModelConfig, tokens: int) -> int:
    width, state = config.width, config.ssm_state
    convolution = 2 * config.conv_width * tokens * width
    projections = 8 * tokens * width**2
    if config.ssm == "mamba1":
        return projections + 4 * tokens * width * config.dt_rank + SCAN_FLOPS * tokens * width * state + convolution
    return projections + 2 * tokens * width * config.heads + SSD_FLOPS * tokens * width * state + convolution


def _temporal(width: int, pieces: int, places: int) -> int:
    return 6 * pieces * places * width**2 + 4 * pieces**2 * places * width


def table4(ssm: Ssm) -> list[dict[str, Any]]:
    """Rows of Table 4 with keys of the documented JSON; TFLOPs, and residuals relative to the paper's figures."""
    convention = {name: _convention(variant(ssm, switches)) for name, (switches, _) in TABLE4.items()}
    rows = []
    for name, (switches, published) in TABLE4.items():
        row = _row(name, variant(ssm, switches))
        row["paper_params_b"] = published.params_b
        tflops = convention[name]
        if name == "Parallel":
            tflops = {frames: convention["Full Attn"][frames] + convention["Full"][frames] for frames in LENGTHS}
            row["note"] = _parallel_note(convention["Parallel"])
        for frames, paper in published.tflops.items():
            row[f"tflops_{frames}"] = tflops[frames]
            row[f"paper_{frames}"] = paper
            row[f"residual_{frames}"] = tflops[frames] / paper - 1
        rows.append(row)
    return rows


def _parallel_note(network: Mapping[int, float]) -> str:
    figures = " and ".join(f"{network[frames]:.2f}" for frames in LENGTHS)
    return (
        "tflops is the sum of the rows Full Attn and Full, as the paper prints it, which counts the dual-stream "
        f"attentions twice; the network itself takes {figures} by the same convention"
    )


def table3(ssm: Ssm) -> list[dict[str, Any]]:
    """Rows of Table 3 (no figures on cost are printed there): text copies, registers and temporal branch."""
    rows = []
    for name, switches in TABLE3.items():
        config = variant(ssm, switches)
        tflops = _convention(config)
        rows.append(_row(name, config) | {f"tflops_{frames}": tflops[frames] for frames in LENGTHS})
    return rows


def _convention(config: ModelConfig) -> dict[int, float]:
    return {frames: mixer_flops(config, Setting(latent)) / 1e12 for frames, latent in LENGTHS.items()}


def _row(name: str, config: ModelConfig) -> dict[str, Any]:
    model = meta_model(config)
    row: dict[str, Any] = {"name": name, "params": total(model), "params_b": total(model) / 1e9}
    for frames, latent in LENGTHS.items():
        counted = count_forward(model, Setting(latent))
        row[f"counted_{frames}"] = counted.mixer_total / 1e12
        row[f"forward_{frames}"] = counted.forward / 1e12
    return row
