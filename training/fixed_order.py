"""A gradient that does not depend on the number of ranks, to the bit: for proofs and for looking into a run.

Floating-point sums depend on their order, and ranks add in another order than one rank does. In this mode every rank
computes every pack, in the order of packs, and only the first rank's gradient counts: the others add exact zeros. So
it costs the packs' whole compute on every rank. The norm that clips is summed from whole gradients, in one order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m4v.core.errors import ConfigError


def check_fixed_order(world_size: int) -> None:
    """Raise ConfigError where the mean over ranks is not exact: DeepSpeed divides by their number."""
    if world_size & (world_size - 1):
        raise ConfigError(
            "a fixed order of sums needs a power of two of ranks", value=world_size, where="engine.fixed_order",
            next_step="use 1, 2, 4, … ranks, or set engine.fixed_order to false",
        )  # fmt: skip


def norm_of(gradients: Iterable[Tensor | None], device: torch.device) -> Tensor:
    """Norm of whole gradients, one after the other."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        if gradient is not None:
            total += gradient.double().square().sum().to(device)
    return total.sqrt().float()


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Norm of DeepSpeed's whole gradient, the same bits on any number of ranks; a collective of all ranks."""
    from deepspeed.utils import safe_get_full_grad

    return norm_of(map(safe_get_full_grad, parameters), parameters[0].device)


def fix_norm(zero: Any, stage: int, parameters: Sequence[nn.Parameter]) -> None:
    """Let a ZeRO optimiser (stage 1 to 3) clip by `gradient_norm` instead of a sum over its partitions."""
    if stage == 3:
        zero._get_norm_groups = lambda: [gradient_norm(parameters)]
    elif stage > 0:
        zero.scaled_global_norm = lambda norm_type=2: gradient_norm(parameters)
