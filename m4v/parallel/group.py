"""The ranks that share one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed

from m4v.core.errors import ConfigError
from m4v.parallel.check import SETTING

if TYPE_CHECKING:
    from m4v.model.layout import BatchLayout
    from m4v.parallel.shard import Shard


@dataclass(frozen=True)
class SequenceGroup:
    """`size` ranks, this one the `rank`-th: frames are dealt to them in order of time."""

    rank: int
    size: int
    handle: Any = None  # torch.distributed's group; None: all ranks

    def shard(self, layout: BatchLayout, device: str) -> Shard:
        """This rank's part of a forward with these columns."""
        from m4v.parallel.shard import shard_of

        return shard_of(layout, self, device)


def deal(items: int, ranks: int) -> list[int]:
    """How many each rank gets, the first ones one more where it does not go evenly."""
    return [items // ranks + (rank < items % ranks) for rank in range(ranks)]


def sequence_group(size: int, timeout_s: int = 600) -> SequenceGroup:
    """This rank's group of `size` neighbouring ranks (so of one machine, where `size` divides its GPUs). A collective
    of all ranks. Raises ConfigError when `size` does not divide them."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if world % size:
        raise ConfigError(
            f"{world} ranks do not split into groups of {size}", value=world, where=SETTING,
            next_step=f"take a multiple of {size} ranks",
        )  # fmt: skip
    handle: Any = None
    for first in range(0, world, size):  # every rank makes every group
        made: Any = distributed.new_group(list(range(first, first + size)), timeout=timedelta(seconds=timeout_s))
        if first <= rank < first + size:
            handle = made
    return SequenceGroup(rank % size, size, handle)
