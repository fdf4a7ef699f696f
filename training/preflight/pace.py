"""Seconds of a training step, from the measured pace of like ones."""

from __future__ import annotations

from m4v.family import AnyModel
from m4v.wan.config import WanConfig
from training.config import EngineConfig
from training.preflight.anchors import (
    GATHERS_S,
    HOOKS_S,
    MOST_RANKS,
    REWARD_SHARE,
    TRAINING,
    UPDATE_S,
    Kernels,
    seconds_of,
    slowness,
    slowness_words,
)
from training.preflight.gpus import Gpu
from training.preflight.parameters import total_parameters


def gpu_seconds(
    model: AnyModel, engine: EngineConfig, kernels: Kernels, gpu: Gpu, ranks: int, packs: int, pack: float,
    reward: float = 0.0,
) -> float:  # fmt: skip
    """Seconds of a step of `packs` packs on each rank. `pack`: operations of a rank's mean pack, recomputed ones too;
    `reward`: those of its reward."""
    speed = TRAINING[kernels.kind(model)]
    share = speed.share * (speed.attention if model.mixer == "attention" else 1.0)
    one = speed.pack_s + seconds_of(pack, share) + seconds_of(reward, REWARD_SHARE) + _gathers_s(model, engine, ranks)
    return (packs * one + UPDATE_S) * slowness(gpu, engine.dtype)


def _gathers_s(model: AnyModel, engine: EngineConfig, ranks: int) -> float:
    """Of a pack, where DeepSpeed's ZeRO-3 gathers weights for each pass over it."""
    if engine.backend != "deepspeed" or engine.zero_stage != 3 or engine.keeps_whole(total_parameters(model)):
        return 0.0
    return HOOKS_S if ranks == 1 else GATHERS_S


def assumptions(model: AnyModel, dtype: str, kernels: Kernels, gpu: Gpu, ranks: int) -> list[str]:
    """What the seconds rest on, in words."""
    source = TRAINING[kernels.kind(model)].source
    found = [f"time {kernels.words(model, source)}{slowness_words(gpu, dtype)}"]
    if isinstance(model, WanConfig):
        found.append("a Wan model is as fast by operation as the pyramid's, which alone was measured")
    if ranks > MOST_RANKS:
        found.append(f"collectives as among {MOST_RANKS} GPUs of one host, the most that were measured")
    return found
