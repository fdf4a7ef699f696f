"""What every engine starts with: the process group, the parameter groups, what blocks keep of their activations."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from m4v.config import Recompute
from m4v.core.errors import ConfigError
from m4v.model.mamba import FLOAT32_PARAMETERS

_C10D: Any = distributed  # its stores are exported at run time only
CPU = torch.device("cpu")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: decayed matrices; and without decay biases, one-dimensional tensors (norms) and what steers
    the state-space recurrence, where a pull to zero would change how long the model remembers."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        steers = name.rpartition(".")[2] in FLOAT32_PARAMETERS
        groups[parameter.ndim > 1 and not name.endswith("bias") and not steers].append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if decayed else 0.0}
        for decayed, params in groups.items()
        if params
    ]


def device_of_rank(device: str) -> torch.device:
    """This process's device; on `cuda` the GPU of its local rank, which becomes torch's current one."""
    if device != "cuda":
        return torch.device(device)
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def init_process_group(rank: int, world_size: int, timeout_s: int, device: torch.device = CPU) -> None:
    """Join the ranks that torchrun started; a lone rank needs no rendezvous."""
    if distributed.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if world_size == 1:
        for key, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            os.environ.setdefault(key, value)  # DeepSpeed reads them
        distributed.init_process_group(backend, store=_C10D.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    distributed.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)


def checkpoint_activations(model: nn.Module, recompute: Recompute) -> None:
    """Let every block of the model keep less; raises ConfigError for a model whose blocks cannot."""
    if recompute == "none":
        return
    if not hasattr(model, "recompute"):
        raise ConfigError(
            f"blocks of {type(model).__name__} keep all activations", value=recompute, where="engine.checkpointing",
            next_step="set engine.checkpointing to none",
        )  # fmt: skip
    lengths = (len(child) for child in model.children() if isinstance(child, nn.ModuleList))
    settings: Any = model
    settings.recompute, settings.recompute_blocks = recompute, max(lengths, default=0)
