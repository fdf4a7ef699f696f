"""The blocks on Triton kernels: the same equations as in `m4v.model.blocks`, without the copies in between.

AdaLN writes the registers behind the tokens, so no product needs a concatenated input; the scan's inputs are gathered
from the projections; the mixers' sum and the MLP meet in the buffer that `proj_out` reads, or, where nothing is kept
for gradients, in the sum that it makes of both. Everything is computed in float32 inside a kernel and kept in the type
of the hidden states, autocast or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.kernels.glue import uses_glue
from m4v.model.checkpointing import current_tape
from m4v.model.layers import NORM_EPS, FeedForward, Linear, Modulation
from m4v.model.layout import BatchLayout
from m4v.model.products import keeps_nothing, product, products
from m4v.model.token_runs import (
    PieceLists,
    TokenRuns,
    image_runs,
    packed_runs,
    piece_lists,
    piece_table,
    text_runs,
)

if TYPE_CHECKING:
    from m4v.model.attention import AttentionContext, JointAttention, SingleAttention
    from m4v.model.blocks import DoubleBlock, MixContext, SingleBlock
    from m4v.model.mamba import MambaMixer
    from m4v.model.recomposition import Recomposition
    from m4v.model.temporal import TemporalBranch


def fuses(x: Tensor, head_dim: int, context: AttentionContext | MixContext | None) -> bool:
    """Whether a block with hidden states x runs here; where frames are shared with other ranks plain torch calls the
    kernels that it can, of the scan and of the attention between pieces."""
    return (context is None or context.shard is None) and uses_glue(x, head_dim)


def double_block(
    block: DoubleBlock, image: Tensor, text: Tensor, temb: Tensor, context: AttentionContext
) -> tuple[Tensor, Tensor]:
    """`DoubleBlock`'s equations."""
    layout, device = context.layout, str(image.device)
    of_image, of_text = _vectors(block.norm1, temb), _vectors(block.norm1_context, temb)
    images, texts = image_runs(layout, device), text_runs(layout, device)
    mixed_image, mixed_text = block.attn(
        _modulated(image, of_image[0], of_image[1], images), _modulated(text, of_text[0], of_text[1], texts), context
    )
    image, text = _gated(image, of_image[2], mixed_image, images), _gated(text, of_text[2], mixed_text, texts)
    more_image = _fed(block.ff, _modulated(image, of_image[3], of_image[4], images))
    more_text = _fed(block.ff_context, _modulated(text, of_text[3], of_text[4], texts))
    return _left(image, of_image[5], more_image, images), _left(text, of_text[5], more_text, texts)


def _fed(ff: FeedForward, x: Tensor) -> Tensor:
    """`FeedForward`'s equations."""
    first, _, last = ff.net
    return product(_activated(x, cast(Linear, first.proj)), cast(Linear, last))


def _activated(x: Tensor, layer: Linear) -> Tensor:
    """GELU of `layer(x)`, which on CUDA is a part of the product where nobody needs what lies between."""
    if not (x.is_cuda and keeps_nothing(x, layer)):
        return F.gelu(product(x, layer), approximate="tanh")
    rows = torch._addmm_activation(layer.bias, x.flatten(0, 1), layer.weight.t(), use_gelu=True)
    return rows.view(*x.shape[:2], rows.shape[1])


def _product_of_parts(mixed: Tensor, hidden: Tensor, layer: Linear) -> Tensor:
    """`layer([mixed | hidden])` of rows (b, L, D) and (b, L, inner) that do not lie beside each other. What the second
    product adds to is rounded, so the first is that of fewer channels, whose sums are smaller."""
    width = mixed.shape[2]
    of_mixed, of_hidden = layer.weight[:, :width], layer.weight[:, width:]
    out = F.linear(mixed, of_mixed, layer.bias)
    return out.baddbmm_(hidden, of_hidden.t().expand(len(hidden), -1, -1))


def single_block(
    block: SingleBlock,
    x: Tensor,
    temb: Tensor,
    attention: AttentionContext | None,
    mix: MixContext | None,
    layout: BatchLayout,
) -> Tensor:
    """`SingleBlock`'s equations."""
    from m4v.kernels.mixing import mix as mix_mixers

    device, (tokens, width) = str(x.device), x.shape[1:]
    shift, scale, gate = _vectors(block.norm, temb)
    mamba = block.mamba if mix is not None else None
    registers = None if mamba is None else mamba.registers
    rows = packed_runs(layout, device, 0 if registers is None else registers.shape[0])
    inner = _modulated(x, shift, scale, rows, registers)
    other = y = z = temporal = lists = tables = None
    if block.attn is not None and attention is not None:
        other = block.attn(inner[:, :tokens], attention)
    apart = keeps_nothing(inner, block.proj_mlp)
    late = [] if apart else [block.proj_mlp]
    if mamba is not None and mix is not None:
        tables = mix.tables[block.number % len(mix.tables)]
        layers = [*_scan_layers(mamba), mamba.to_z]
        # Behind Mamba-1's steps comes a product of its own; those of Mamba-2 are few columns, of which `compose` reads.
        made = products(inner, [*layers, *late], aligned=mamba.config.ssm == "ssd")
        (*given, z), mlp = made[: len(layers)], made[len(layers) :]
        y = scanned(mamba, given, mix.turn, tables)
        if block.temporal is not None:
            temporal, lists = pieces_mixed(block.temporal, inner, layout)
    else:
        mlp = products(inner, late)
    mixed = mix_mixers(
        y, z, other, temporal, None if block.temporal is None else block.temporal.scale, None if apart else mlp[0],
        *_scan_tables(tables), *_lists(lists), tokens, width,
    )  # fmt: skip
    if apart:
        hidden = _activated(inner, block.proj_mlp)[:, :tokens]
        return _left(x, gate, _product_of_parts(mixed, hidden, block.proj_out), packed_runs(layout, device))
    return _left(x, gate, product(mixed, block.proj_out), packed_runs(layout, device))


def _scan_layers(mamba: MambaMixer) -> list[Linear]:
    """The layers of C, B, x and dt, of which Mamba-1's has another behind it."""
    steps = mamba.to_dt[0] if isinstance(mamba.to_dt, nn.Sequential) else mamba.to_dt
    return [mamba.to_c, mamba.to_b, mamba.to_x, cast(Linear, steps)]


def scanned(mamba: MambaMixer, given: Sequence[Tensor], turn: Tensor, tables: Recomposition) -> Tensor:
    """The scan's output (b, N, D) of what `_scan_layers` make of tokens and registers (b, E, D). Pads are not set to
    zero behind the convolution: with step sizes and keys of zero they change no state, and nobody reads them."""
    from m4v.kernels.composition import compose, compose_convolved

    *rows, steps = given
    if isinstance(mamba.to_dt, nn.Sequential):
        steps = product(steps, cast(Linear, mamba.to_dt[1]))
    read = (*rows, steps, mamba.norm_c.weight, mamba.norm_b.weight, turn, mamba.dt_bias)
    last, conv = (NORM_EPS, mamba.config.rope_on_ssm), mamba.conv
    if conv.gathers(rows[-1]):
        c, b, x, dt = compose_convolved(*read, tables.source, tables.real, *last, conv.weight, conv.bias)
    else:
        c, b, x, dt = compose(*read, *_scan_tables(tables), *last)
        x = conv(x)
    return mamba.scan(x, dt, b, c, tables)


def pieces_mixed(branch: TemporalBranch, rows: Tensor, layout: BatchLayout) -> tuple[Tensor, PieceLists]:
    """The temporal branch's output (b, heads, its tokens, head size) of packed rows, before its scale."""
    from m4v.kernels.head_norm import norm_heads
    from m4v.kernels.piece_attention import attend_pieces
    from m4v.kernels.pieces import pool_pieces

    device = str(rows.device)
    lists = piece_lists(layout, device)
    tokens = pool_pieces(rows, lists.bounds, lists.members, lists.back, layout.text_tokens)
    weights = [branch.norm_q.weight, branch.norm_k.weight]
    given = products(tokens, [branch.to_q, branch.to_k, branch.to_v])
    q, k, v = norm_heads(*given, [], weights, None, True, NORM_EPS)
    table = piece_table(layout, device)  # by its fields: torch 2.11's compiler does not iterate over a constant
    mixed, _ = attend_pieces(q, k, v, table.seen, table.table, table.pieces, table.places)
    return mixed, lists


def joint_heads(attn: JointAttention, image: Tensor, text: Tensor, turn: Tensor) -> list[Tensor]:
    """q, k, v (b, text and image tokens, heads, head size) of both streams, normed and turned."""
    from m4v.kernels.head_norm import norm_heads

    of_text = list(products(text, [attn.add_q_proj, attn.add_k_proj, attn.add_v_proj]))
    norms = (attn.norm_q, attn.norm_k, attn.norm_added_q, attn.norm_added_k)
    weights = [norm.weight for norm in norms]
    mine = products(image, [attn.to_q, attn.to_k, attn.to_v])
    made: list[Tensor] = norm_heads(*mine, of_text, weights, turn, False, NORM_EPS)
    return made


def single_heads(attn: SingleAttention, x: Tensor, turn: Tensor) -> list[Tensor]:
    """q and k (b, tokens, heads, head size), normed and turned, and v as its layer gives it (b, tokens, D)."""
    from m4v.kernels.head_norm import norm_heads

    weights = [attn.norm_q.weight, attn.norm_k.weight]
    q, k, v = products(x, [attn.to_q, attn.to_k, attn.to_v])
    return [*norm_heads(q, k, None, [], weights, turn, False, NORM_EPS), v]


def _vectors(norm: Modulation, temb: Tensor) -> tuple[Tensor, ...]:
    """The modulation's vectors, one row per column each."""
    return norm.linear(F.silu(temb)).chunk(norm.parts, dim=-1)  # type: ignore[no-any-return]


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, runs: TokenRuns, registers: Tensor | None = None) -> Tensor:
    from m4v.kernels.modulation import modulate

    tables = (runs.tiles, runs.order, runs.bounds)
    rows: Tensor = modulate(x.contiguous(), shift, scale, registers, *tables, runs.rows, NORM_EPS)[0]
    return rows


def _gated(x: Tensor, gate: Tensor, inner: Tensor, runs: TokenRuns) -> Tensor:
    from m4v.kernels.modulation import gated_sum

    out: Tensor = gated_sum(x.contiguous(), gate, inner.contiguous(), runs.tiles, runs.order, runs.bounds)
    return out


def _left(x: Tensor, gate: Tensor, inner: Tensor, runs: TokenRuns) -> Tensor:
    """`_gated` at the end of a block. The next block has its result, so a tape can keep it for nothing."""
    from m4v.kernels.modulation import gated_sum

    tape = current_tape()
    tables = (runs.tiles, runs.order, runs.bounds)
    out: Tensor = gated_sum.kept(
        None if tape is None else tape.result, x.contiguous(), gate, inner.contiguous(), *tables
    )
    return out


def _scan_tables(tables: Recomposition | None) -> tuple[Tensor | None, ...]:
    if tables is None:
        return (None,) * 5
    return tables.source, tables.real, tables.first, tables.second, tables.valid


def _lists(lists: PieceLists | None) -> tuple[Tensor | None, ...]:
    return (None,) * 3 if lists is None else (lists.back, lists.bounds, lists.members)
