"""What computes a step's gradients and update, sharded over ranks: one interface (`Engine`), and who is behind it."""

from __future__ import annotations

import torch
from torch import nn

from training.config import EngineConfig, OptimizerConfig
from training.engine.deepspeed import DeepSpeedEngine, deepspeed_config
from training.engine.interface import Accept, Engine, Fragment
from training.engine.setup import CPU, device_of_rank, init_process_group, parameter_groups

__all__ = [
    "Accept", "DeepSpeedEngine", "Engine", "Fragment", "deepspeed_config", "device_of_rank", "init_process_group",
    "open_engine", "parameter_groups",
]  # fmt: skip


def open_engine(
    model: nn.Module,
    optimizer: OptimizerConfig,
    engine: EngineConfig,
    packs_per_rank: int,
    device: torch.device = CPU,
) -> Engine:
    """The engine of `engine.backend` around a model whose weights are loaded, equal on every rank; a collective of all
    ranks. Only the chosen one's libraries are imported."""
    if engine.backend == "fsdp2":
        from training.engine.fsdp2 import Fsdp2Engine

        return Fsdp2Engine(model, optimizer, engine, packs_per_rank, device)
    return DeepSpeedEngine(model, optimizer, engine, packs_per_rank, device)
