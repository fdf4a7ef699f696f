"""MM-token re-composition (paper §3.3, Figure 2c): packed tokens <-> [text, registers and frames, text].

The two directions are adjoint gathers over the same index tables, so their gradients are gathers too:
exact, deterministic, and free of scatter-adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from m4v.model.tables import CompositionTable

if TYPE_CHECKING:
    from m4v.parallel.segment import Segment


class TextOrder(NamedTuple):
    """Alignment of the text copies; all (b, C, slots).

    `first_token`, `second_token`: text slot that stands at each place of the right-aligned opening copy and of
    the left-aligned closing copy (pads fill the rest, so both are permutations). `first_place`,
    `second_place`: the inverses. `first_real`, `second_real`: places that hold a valid token. `valid`: the mask.
    """

    first_token: Tensor
    second_token: Tensor
    first_place: Tensor
    second_place: Tensor
    first_real: Tensor
    second_real: Tensor
    valid: Tensor


def text_order(valid: Tensor) -> TextOrder:
    """Alignment for the text mask `valid` (b, C, slots), which may have holes."""
    slots = valid.shape[-1]
    count = valid.sum(dim=-1, keepdim=True)
    place = torch.arange(slots, device=valid.device).expand_as(valid)
    left = torch.argsort((~valid).to(torch.uint8), dim=-1, stable=True)
    rank = torch.argsort(left, dim=-1)
    return TextOrder(
        first_token=left.gather(-1, (place + count) % slots),
        second_token=left,
        first_place=(rank - count) % slots,
        second_place=rank,
        first_real=place >= slots - count,
        second_real=place < count,
        valid=valid,
    )


class Recomposition(NamedTuple):
    """Gather tables of one scan path for the rows of a batch, flattened over (batch row, token).

    `source` (b N,): packed row behind each composed slot; `real` (b, N, 1): 1 for tokens, 0 for pads.
    `first` (b E,): composed row of each packed token (of a text token: its opening copy). `second`
    (b, text): composed row of its closing copy, or None. `valid` (b, text, 1): 1 for text that is no pad.
    `chunk_column` and `spans` are those of the static table, `column` (b, N) is its own or None. Packed rows are
    [text, image, registers]: E of them, of which the first `tokens` are text and image. `segment`: when other ranks
    have the rest of the sequence.
    """

    source: Tensor
    real: Tensor
    first: Tensor
    second: Tensor | None
    valid: Tensor
    chunk_column: Tensor
    column: Tensor | None
    spans: tuple[tuple[int, int], ...]
    batch: int
    tokens: int
    extent: int
    length: int
    segment: Segment | None = None


def recomposition(table: CompositionTable, order: TextOrder, tokens: int, dtype: torch.dtype) -> Recomposition:
    """Put the text of each batch row into a static table."""
    batch, columns, slots = order.valid.shape
    length, extent = table.source.shape[0], table.slot.shape[0]
    base = torch.arange(columns, device=order.valid.device)[:, None] * slots
    source = table.source.expand(batch, length).clone()
    real = table.real.expand(batch, length).clone()
    first = table.slot.expand(batch, extent).clone()
    text = columns * slots
    source[:, table.first.flatten()] = (order.first_token + base).flatten(1)
    real[:, table.first.flatten()] = order.first_real.flatten(1)
    first[:, :text] = (order.first_place + table.first[:, :1]).flatten(1)
    row = torch.arange(batch, device=source.device)[:, None]
    second = None
    if table.second is not None:
        source[:, table.second.flatten()] = (order.second_token + base).flatten(1)
        real[:, table.second.flatten()] = order.second_real.flatten(1)
        second = ((order.second_place + table.second[:, :1]).flatten(1) + row * length).flatten()
    return Recomposition(
        source=(source + row * extent).flatten(),
        real=real.to(dtype)[..., None],
        first=(first + row * length).flatten(),
        second=second,
        valid=order.valid.flatten(1).to(dtype)[..., None],
        chunk_column=table.chunk_column,
        column=None if table.column is None else table.column.expand(batch, length).contiguous(),
        spans=table.spans,
        batch=batch,
        tokens=tokens,
        extent=extent,
        length=length,
    )


def _spread(x: Tensor, r: Recomposition) -> Tensor:
    """Packed (b, E, F) -> composed (b, N, F), zeros at pads."""
    out = x.reshape(-1, x.shape[-1]).index_select(0, r.source)
    return out.view(r.batch, r.length, -1).mul_(r.real)


def _collect(y: Tensor, r: Recomposition) -> Tensor:
    """Composed (b, N, F) -> packed (b, E, F): text copies summed, text pads zero."""
    rows = y.reshape(-1, y.shape[-1])
    out = rows.index_select(0, r.first).view(r.batch, r.extent, -1)
    text = out[:, : r.valid.shape[1]]
    if r.second is not None:
        text += rows.index_select(0, r.second).view_as(text)
    text *= r.valid
    return out


class _Compose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Recomposition) -> Tensor:
        ctx.tables = r
        return _spread(x, r)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _collect(grad, ctx.tables), None


class _Decompose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, r: Recomposition) -> Tensor:
        ctx.tables = r
        return _collect(y, r)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _spread(grad, ctx.tables), None


def compose(x: Tensor, tables: Recomposition) -> Tensor:
    """Packed tokens and registers (b, E, F) to the mixer's sequence (b, N, F); pads are zero."""
    out: Tensor = _Compose.apply(x, tables)  # type: ignore[no-untyped-call]
    return out


def decompose(y: Tensor, tables: Recomposition) -> Tensor:
    """The mixer's output (b, N, F) back to packed text and image (b, tokens, F), registers dropped."""
    out: Tensor = _Decompose.apply(y, tables)  # type: ignore[no-untyped-call]
    return out[:, : tables.tokens]
