"""Packs of clips too short to be cut, images above all: ranks share the samples of a batch in place of their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from m4v.parallel.collectives import assemble
from m4v.parallel.group import SequenceGroup, deal


def shares_samples(group: SequenceGroup | None, columns: Sequence[Sequence[Tensor]]) -> bool:
    """Whether no column of clips (b, c, t, h, w) has a frame for every rank."""
    if group is None:
        return False
    return max(sum(clip.shape[2] for clip in clips) for clips in columns) < group.size


def by_samples(group: SequenceGroup, batch: int, forward: Callable[[slice], list[Tensor]]) -> list[Tensor]:
    """Velocities (b, ...) of all samples on every rank, of which each computes `forward(own samples)` alone.

    A rank without a sample computes the first one for nothing: its parameters need gradients, and they are zero.
    """
    counts = deal(batch, group.size)
    first, own = sum(counts[: group.rank]), counts[group.rank]
    rows = slice(first, first + own) if own else slice(0, 1)
    found = []
    for part in forward(rows):
        whole = assemble(part[:own].flatten(1)[None], counts, group)
        found.append(whole[0].unflatten(1, part.shape[1:]))
    return found
