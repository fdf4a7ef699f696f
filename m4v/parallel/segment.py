"""A rank's part of the composed sequences [text, (register, frame) ..., text] that MM-DiM mixers scan.

The first rank owns the text and scans its opening copy; the last is sent the same rows, projects them again and scans
the closing copy, whose output goes back to the owner. Every path visits one frame after the other, so all eight are
cut at the same frame boundaries. In front of each column lie `conv_width - 1` slots for the convolution's halo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m4v.model.layout import BatchLayout, Column, Indices, per_layout
from m4v.model.recomposition import Recomposition, TextOrder, recomposition
from m4v.model.scan import LAYER_ORDER
from m4v.model.tables import CompositionTable, table_of, visual_orders
from m4v.parallel.collectives import exchange, gather
from m4v.parallel.group import SequenceGroup
from m4v.parallel.states import Scanned, carried

if TYPE_CHECKING:
    from m4v.parallel.shard import Shard

Ends = Literal["opening", "closing", "none"]


class SegmentTable(NamedTuple):
    """`composed` as `CompositionTable`, over this rank's part. Of each column and each place of its halo: `tail`, the
    own slot that later ranks see there, `halo`, the own slot to fill, and `source`, the row of all ranks' tails that
    fills it; `tail_real` and `source_real` are 0 where there is nothing."""

    composed: CompositionTable
    tail: Tensor
    tail_real: Tensor
    halo: Tensor
    source: Tensor
    source_real: Tensor


class Segment(NamedTuple):
    """What a mixer needs beside its tables when other ranks scan the rest. `text`: rows of the whole text that are
    scanned twice, 0 when its second copy is not in use."""

    group: SequenceGroup
    table: SegmentTable
    text: int
    chunk: int

    def with_text(self, x: Tensor) -> Tensor:
        """(b, own tokens, F): in front of the last rank's the text of the first."""
        return self._passed(x, source=0, target=self.group.size - 1)

    def without_text(self, y: Tensor) -> Tensor:
        """The adjoint: what the last rank has in the place of the text is added to the owner's."""
        return self._passed(y, source=self.group.size - 1, target=0)

    def _passed(self, x: Tensor, source: int, target: int) -> Tensor:
        if not self.text:
            return x
        rank, size = self.group.rank, self.group.size
        elements = x.shape[0] * self.text * x.shape[2]
        sent = [elements * (rank == source and q == target) for q in range(size)]
        received = [elements * (rank == target and q == source) for q in range(size)]
        text = x[:, : self.text] if rank == source else x[:, :0]
        got = exchange(text.reshape(-1), sent, received, self.group).view(
            x.shape[0], -1 if any(received) else 0, x.shape[2]
        )
        if source == 0:
            return torch.cat([got, x], dim=1)
        if rank == target:
            return torch.cat([x[:, : self.text] + got, x[:, self.text :]], dim=1)
        return torch.cat([got, x[:, self.text :] if rank == source else x], dim=1)

    def with_halo(self, u: Tensor) -> Tensor:
        """Composed rows (b, N, F) with the last rows of earlier ranks in the slots before each column."""
        table = self.table
        tails = gather(u.index_select(1, table.tail) * table.tail_real.to(u.dtype), self.group)
        rows = tails.transpose(0, 1).flatten(1, 2).index_select(1, table.source) * table.source_real.to(u.dtype)
        return u.index_copy(1, table.halo, rows)

    def carried(self, scanned: Scanned) -> Tensor:
        """What the states of earlier ranks add to the scan's outputs, as exact as the step sizes, autocast or not."""
        with torch.autocast(scanned.dt.device.type, enabled=False):
            return carried(scanned, self.table.composed.spans, self.chunk, self.group)


def segment(
    shard: Shard,
    order: TextOrder,
    path: int,
    scan: Literal["serpentine", "raster"],
    registers: bool,
    closing_text: bool,
    chunk: int,
    gap: int,
    dtype: torch.dtype,
) -> Recomposition:
    """This rank's part of the re-composition that `composition_table` and `recomposition` make with these settings."""
    group, slots = shard.group, shard.whole.text_slots
    ends: Ends = (
        "opening" if group.rank == 0 else "closing" if closing_text and group.rank == group.size - 1 else "none"
    )
    table = segment_table(
        shard.whole, shard.parts, group.rank, path, scan, registers, closing_text, chunk, gap, shard.device
    )
    if ends == "closing":  # the closing copy is this rank's only one
        order = order._replace(
            first_token=order.second_token, first_place=order.second_place, first_real=order.second_real
        )
    elif ends == "none":
        order = TextOrder(*(field[..., :0] for field in order))
    text = 0 if ends == "none" else len(shard.whole.columns) * slots
    tables = recomposition(table.composed, order, text + shard.local.image_tokens, dtype)
    passed = len(shard.whole.columns) * slots if closing_text else 0
    return tables._replace(segment=Segment(group, table, passed, chunk))


@per_layout(1024)
def segment_table(
    whole: BatchLayout,
    parts: tuple[tuple[Column, ...], ...],
    rank: int,
    path: int,
    scan: Literal["serpentine", "raster"],
    registers: bool,
    closing_text: bool,
    chunk: int,
    gap: int,
    device: str,
) -> SegmentTable:
    """Tables of rank `rank`; `parts[q]` are the columns of rank q."""
    ranks, slots = len(parts), whole.text_slots
    opens, closes = rank == 0, closing_text and rank == ranks - 1
    local = BatchLayout(parts[rank], slots if opens or closes else 0)
    visuals = visual_orders(local, LAYER_ORDER[path % len(LAYER_ORDER)], scan, registers)
    slot = np.zeros(local.text_tokens + sum(map(len, visuals)), np.int64)
    sources, texts, begin = [], [], 0
    for visual in visuals:
        used = gap + local.text_slots + len(visual)
        source = np.full(-(-used // chunk) * chunk, -1, np.int64)
        seen = gap + (local.text_slots if opens else 0)
        source[seen : seen + len(visual)] = visual
        slot[visual] = begin + seen + np.arange(len(visual))
        texts.append(begin + (gap if opens else gap + len(visual)) + np.arange(local.text_slots))
        sources.append(source)
        begin += len(source)
    composed = table_of(sources, slot, texts, None, chunk, device)
    halo = _halo(whole, parts, rank, registers, closing_text, gap, [first for first, _ in composed.spans])
    return SegmentTable(composed, *(torch.from_numpy(u).to(device) for u in halo))


def _halo(
    whole: BatchLayout,
    parts: tuple[tuple[Column, ...], ...],
    rank: int,
    registers: bool,
    closing_text: bool,
    gap: int,
    begins: list[int],
) -> tuple[Indices, ...]:
    """`tail`, `tail_real`, `halo`, `source`, `source_real` of `SegmentTable`, column after column."""
    tail, halo, source = [], [], []
    for number, begin in enumerate(begins):
        lengths = [part[number].tokens + (part[number].frames if registers else 0) for part in parts]
        lengths[0] += whole.text_slots
        lengths[-1] += whole.text_slots if closing_text else 0
        ends = np.cumsum(lengths)
        for back in range(gap, 0, -1):  # a place so far before the end of a part, and before the begin of a column
            tail.append(begin + gap + lengths[rank] - back if back <= lengths[rank] else -1)
            halo.append(begin + gap - back)
            place = ends[rank] - lengths[rank] - back
            from_rank = int(np.searchsorted(ends, place, side="right")) if place >= 0 else -1
            row = gap - int(ends[from_rank] - place) if place >= 0 else 0  # of that rank's tail of this column
            source.append((from_rank * len(begins) + number) * gap + row if place >= 0 else -1)
    out: list[Indices] = []
    for rows, real in ((tail, True), (halo, False), (source, True)):
        indices = np.array(rows, np.int64)
        out.append(np.maximum(indices, 0))
        if real:
            out.append((indices >= 0).astype(np.float32)[:, None])  # type: ignore[arg-type]
    return tuple(out)
