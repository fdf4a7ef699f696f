"""The blocks on Triton kernels: the same equations as in `m4v.model.blocks`, without the copies in between.

AdaLN writes the registers behind the tokens, so no product needs a concatenated input; the scan's inputs are gathered
from the projections; the mixers' sum and the MLP meet in the buffer that `proj_out` reads. Everything is computed in
float32 inside a kernel and kept in the type of the hidden states, autocast or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from m4v.kernels.glue import uses_glue
from m4v.model.layers import NORM_EPS, Modulation
from m4v.model.layout import BatchLayout
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
    """Whether a block with hidden states x runs here; frames shared with other ranks stay with plain torch."""
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
    more_image = block.ff(_modulated(image, of_image[3], of_image[4], images))
    more_text = block.ff_context(_modulated(text, of_text[3], of_text[4], texts))
    return _gated(image, of_image[5], more_image, images), _gated(text, of_text[5], more_text, texts)


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
    if mamba is not None and mix is not None:
        tables = mix.tables[block.number % len(mix.tables)]
        y, z = scanned(mamba, inner, mix.turn, tables), mamba.to_z(inner)
        if block.temporal is not None:
            temporal, lists = pieces_mixed(block.temporal, inner, layout)
    joined = mix_mixers(
        y, z, other, temporal, None if block.temporal is None else block.temporal.scale, block.proj_mlp(inner),
        *_scan_tables(tables), *_lists(lists), tokens, width,
    )  # fmt: skip
    return _gated(x, gate, block.proj_out(joined), packed_runs(layout, device))


def scanned(mamba: MambaMixer, rows: Tensor, turn: Tensor, tables: Recomposition) -> Tensor:
    """The scan's output (b, N, D) of modulated tokens and registers (b, E, D). Pads are not set to zero behind the
    convolution: with step sizes and keys of zero they change no state, and nobody reads them."""
    from m4v.kernels.composition import compose

    c, b, x, dt = compose(
        mamba.to_c(rows), mamba.to_b(rows), mamba.to_x(rows), mamba.to_dt(rows), mamba.norm_c.weight,
        mamba.norm_b.weight, turn, mamba.dt_bias, *_scan_tables(tables), NORM_EPS, mamba.config.rope_on_ssm,
    )  # fmt: skip
    return mamba.scan(mamba.conv(x), dt, b, c, tables)


def pieces_mixed(branch: TemporalBranch, rows: Tensor, layout: BatchLayout) -> tuple[Tensor, PieceLists]:
    """The temporal branch's output (b, heads, its tokens, head size) of packed rows, before its scale."""
    from m4v.kernels.head_norm import norm_heads
    from m4v.kernels.piece_attention import attend_pieces
    from m4v.kernels.pieces import pool_pieces

    device = str(rows.device)
    lists = piece_lists(layout, device)
    tokens = pool_pieces(rows, lists.bounds, lists.members, lists.back, layout.text_tokens)
    weights = [branch.norm_q.weight, branch.norm_k.weight]
    q, k, v = norm_heads(
        branch.to_q(tokens), branch.to_k(tokens), branch.to_v(tokens), [], weights, None, True, NORM_EPS
    )
    mixed, _ = attend_pieces(q, k, v, *piece_table(layout, device))
    return mixed, lists


def joint_heads(attn: JointAttention, image: Tensor, text: Tensor, turn: Tensor) -> list[Tensor]:
    """q, k, v (b, text and image tokens, heads, head size) of both streams, normed and turned."""
    from m4v.kernels.head_norm import norm_heads

    of_text = [attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)]
    norms = (attn.norm_q, attn.norm_k, attn.norm_added_q, attn.norm_added_k)
    weights = [norm.weight for norm in norms]
    mine = attn.to_q(image), attn.to_k(image), attn.to_v(image)
    made: list[Tensor] = norm_heads(*mine, of_text, weights, turn, False, NORM_EPS)
    return made


def single_heads(attn: SingleAttention, x: Tensor, turn: Tensor) -> list[Tensor]:
    """q and k (b, tokens, heads, head size), normed and turned."""
    from m4v.kernels.head_norm import norm_heads

    weights = [attn.norm_q.weight, attn.norm_k.weight]
    made: list[Tensor] = norm_heads(attn.to_q(x), attn.to_k(x), None, [], weights, turn, False, NORM_EPS)
    return made


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


def _scan_tables(tables: Recomposition | None) -> tuple[Tensor | None, ...]:
    if tables is None:
        return (None,) * 5
    return tables.source, tables.real, tables.first, tables.second, tables.valid


def _lists(lists: PieceLists | None) -> tuple[Tensor | None, ...]:
    return (None,) * 3 if lists is None else (lists.back, lists.bounds, lists.members)
