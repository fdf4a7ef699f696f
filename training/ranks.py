"""What a rank is for: which packs are its own, and whether its results count. Torch-free.

`engine.sequence_parallel` neighbouring ranks share every forward: they have the same packs and come to the same loss.
With `engine.fixed_order` every rank has all packs.
"""

from __future__ import annotations

from m4v.core.errors import ConfigError
from training.config import EngineConfig, TrainConfig


def data_rank(engine: EngineConfig, rank: int, world_size: int) -> tuple[int, int]:
    """(place among the groups of ranks that share a forward, number of groups)."""
    return rank // engine.sequence_parallel, world_size // engine.sequence_parallel


def pack_rank(engine: EngineConfig, rank: int, world_size: int) -> tuple[int, int]:
    """(r, n): the rank trains on packs r, r + n, … of each step."""
    return (0, 1) if engine.fixed_order else data_rank(engine, rank, world_size)


def leads(engine: EngineConfig, rank: int) -> bool:
    """Whether a rank speaks for those that share its forwards."""
    return rank % engine.sequence_parallel == 0


def check_ranks(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError when so many ranks cannot split into groups, or the groups the packs of a step."""
    shared = config.engine.sequence_parallel
    if world_size % shared:
        raise ConfigError(
            f"{world_size} ranks do not split into groups of {shared} that share a forward", value=shared,
            where="engine.sequence_parallel", next_step=f"take a multiple of {shared} ranks",
        )  # fmt: skip
    groups = world_size // shared
    if config.order.packs % groups:
        what = f"{groups} ranks" if shared == 1 else f"{groups} groups of {shared} ranks"
        raise ConfigError(
            f"{what} do not divide the packs of a step", value=config.order.packs, where="order.packs",
            next_step=f"set order.packs to a multiple of {groups}",
        )  # fmt: skip
