"""Parameters of a model by part, as `m4v flops --parts` names them: closed forms of its config."""

from __future__ import annotations

from m4v.config import ModelConfig
from m4v.family import AnyModel
from m4v.wan.config import WanConfig

TIME_CHANNELS = 256  # of the timestep's sinusoids
REGISTER_TYPES = 3


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def parameters_by_part(config: AnyModel) -> dict[str, int]:
    """Parameters of each part that has any, in the order of the forward; their sum is the model's."""
    found = _wan(config) if isinstance(config, WanConfig) else _pyramid(config)
    return {part: count for part, count in found.items() if count}


def _pyramid(config: ModelConfig) -> dict[str, int]:
    width, token = config.width, config.latent_channels * config.patch**2
    inner, norms = config.mlp_ratio * width, 2 * config.head_dim
    double, single = config.double_blocks, config.single_blocks
    mixers = [mixer for block in range(single) for mixer in config.mixers(block)]
    attention, mamba = mixers.count("attention"), mixers.count("mm_dim")
    embedded = sum(_linear(inputs, width) + _linear(width, width) for inputs in (TIME_CHANNELS, config.pooled_dim))
    return {
        "embedders": embedded + _linear(config.text_dim, width) + _linear(token, width),
        "double blocks: attention": double * (8 * _linear(width, width) + 2 * norms),
        "double blocks: MLP": double * 2 * (_linear(width, inner) + _linear(inner, width)),
        "double blocks: AdaLN": double * 2 * _linear(width, 6 * width),
        "single blocks: attention": attention * (3 * _linear(width, width) + norms),
        "single blocks: registers": mamba * REGISTER_TYPES * width * config.registers,
        "single blocks: mamba": mamba * _mamba(config),
        "single blocks: temporal branch": mamba * config.temporal_branch * (3 * _linear(width, width) + norms + 1),
        "single blocks: MLP and output projection": single * (_linear(width, inner) + _linear(width + inner, width)),
        "single blocks: AdaLN": single * _linear(width, 3 * width),
        "output": _linear(width, 2 * width) + _linear(width, token),
    }


def _wan(config: WanConfig) -> dict[str, int]:
    width, token, blocks = config.width, config.latent_channels * config.patch**2, config.blocks
    mixer = config.mixer_config
    mm_dim = config.mixer == "mm_dim"
    attention = 4 * _linear(width, width) + 2 * width  # its norms of q and k are over the whole width
    fresh = _mamba(mixer) - 2 * config.head_dim + 2 * width + (width if config.registers else 0)
    branch = config.temporal_branch * (3 * _linear(width, width) + 2 * config.head_dim + 1)
    time = _linear(config.frequency_dim, width) + _linear(width, width) + _linear(width, 6 * width)
    return {
        "embedders": time + _linear(config.text_dim, width) + _linear(width, width) + _linear(token, width),
        "blocks: self-attention": 0 if mm_dim else blocks * attention,
        "blocks: mamba": blocks * fresh if mm_dim else 0,
        "blocks: temporal branch": blocks * branch if mm_dim else 0,
        "blocks: output projection and text scale": blocks * (_linear(width, width) + bool(config.sequence_text))
        if mm_dim
        else 0,
        "blocks: cross-attention": blocks * (attention + (2 * width if config.cross_attention_norm else 0)),
        "blocks: MLP": blocks * (_linear(width, config.mlp_width) + _linear(config.mlp_width, width)),
        "blocks: AdaLN": blocks * 6 * width,
        "output": 2 * width + _linear(width, token),
    }


def _mamba(config: ModelConfig) -> int:
    width = config.width
    shared = 4 * _linear(width, width) + 2 * config.head_dim + width * config.conv_width + width
    if config.ssm == "ssd":
        return shared + width * config.heads + 3 * config.heads
    return shared + 2 * width * config.dt_rank + 2 * width + width * config.ssm_state


def total_parameters(config: AnyModel) -> int:
    return sum(parameters_by_part(config).values())
