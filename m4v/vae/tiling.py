"""Cut a video in space and in time: blended tiles, causal chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

OVERLAP = 4  # a tile shares one part in so many with the next one


def tiled(run: Callable[[Tensor, int], Tensor], x: Tensor, tile: int | None, out_tile: int | None) -> Tensor:
    """`run(tile of x, number of the tile)` over tiles of `tile` x `tile`, blended linearly where they overlap.

    A tile of x becomes one of `out_tile`. Each is blended with the one above, then with the one on its left,
    which are blended already (as the reference does it). A picture that fits one tile is not cut.
    """
    height, width = x.shape[-2:]
    if tile is None or out_tile is None or max(height, width) <= tile:
        return run(x, 0)
    step, overlap = tile - tile // OVERLAP, out_tile // OVERLAP
    kept = out_tile - overlap
    rows: list[Tensor] = []
    above: list[Tensor] = []
    number = 0
    for top in range(0, height, step):
        row: list[Tensor] = []
        for left in range(0, width, step):
            piece = run(x[..., top : top + tile, left : left + tile], number)
            number += 1
            if above:
                piece = _blend(above[len(row)], piece, overlap, dim=-2)
            if row:
                piece = _blend(row[-1], piece, overlap, dim=-1)
            row.append(piece)
        rows.append(torch.cat([piece[..., :kept, :kept] for piece in row], dim=-1))
        above = row
    return torch.cat(rows, dim=-2)


def _blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """`after`, whose first places fade in over the last places of `before`."""
    overlap = min(overlap, before.shape[dim], after.shape[dim])
    fade = torch.arange(overlap, dtype=after.dtype, device=after.device) / overlap
    fade = fade if dim == -1 else fade[:, None]
    old = before.narrow(dim, before.shape[dim] - overlap, overlap)
    new = after.narrow(dim, 0, overlap)
    rest = after.narrow(dim, overlap, after.shape[dim] - overlap)
    return torch.cat([old * (1 - fade) + new * fade, rest], dim=dim)


def chunks(frames: int, window: int | None, begins: bool = True) -> list[slice]:
    """Cuts of `frames` frames: `window` each, one more in the first of a video; all at once without a window."""
    if window is None:
        return [slice(0, frames)]
    stops = [*range(window + begins, frames, window), frames]
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def gather(pieces: Iterable[Tensor], window: int) -> Iterator[Tensor]:
    """Pieces of a video in time, (b, c, n, h, w), joined or cut to the chunks that `chunks` names."""
    waiting: list[Tensor] = []
    wanted = window + 1
    for piece in pieces:
        waiting.append(piece)
        while sum(p.shape[2] for p in waiting) >= wanted:
            joined = torch.cat(waiting, dim=2)
            yield joined[:, :, :wanted]
            waiting = [joined[:, :, wanted:]]
            wanted = window
    if waiting and any(p.shape[2] for p in waiting):
        yield torch.cat(waiting, dim=2)
