"""Ranks that share every forward of a model, as the engine's settings say."""

from __future__ import annotations

from typing import Any

from torch import nn

from m4v.core.errors import ConfigError
from m4v.parallel.check import SETTING
from m4v.parallel.group import sequence_group
from training.config import EngineConfig


def share_forward(model: nn.Module, engine: EngineConfig) -> None:
    """Let `engine.sequence_parallel` neighbouring ranks share each forward; a collective of all ranks.

    For ZeRO they stay ranks like any other: what a rank's backward leaves is its part of the group's gradient, and the
    whole is the sum over all ranks, as it is for packs. Raises ConfigError for a model or ranks that cannot.
    """
    if engine.sequence_parallel == 1:
        return
    if not hasattr(model, "share"):
        raise ConfigError(
            f"ranks cannot share a forward of {type(model).__name__}", value=engine.sequence_parallel, where=SETTING,
            next_step=f"leave out {SETTING}",
        )  # fmt: skip
    sharing: Any = model
    sharing.share(sequence_group(engine.sequence_parallel, engine.timeout_s))
