"""Block masks against the dense rule, over random layouts; no CUDA device needed."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m4v.flow.packing import history_shape
from m4v.kernels.blocks import BLOCK, attend_blocks, block_grids
from m4v.model.attention import AttentionContext, attend, attention_blocks, attention_masks
from m4v.model.layout import BatchLayout, Clip, Column


@st.composite
def layouts(draw: st.DrawFn) -> BatchLayout:
    columns = []
    for _ in range(draw(st.integers(1, 3))):
        stage, unit = draw(st.integers(0, 2)), draw(st.integers(1, 31))
        height, width = 4 * draw(st.integers(1, 3)), 4 * draw(st.integers(1, 3))
        sizes = [*history_shape(stage, unit), (stage, 1)]
        columns.append(Column(stage, tuple(Clip(n, height >> (2 - s), width >> (2 - s)) for s, n in sizes)))
    return BatchLayout(tuple(columns), draw(st.integers(1, 128)))


def valid_of(layout: BatchLayout, batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(0, layout.text_slots + 1, (batch, len(layout.columns), 1), generator=generator)
    return torch.arange(layout.text_slots) < length


def dense(layout: BatchLayout, valid: torch.Tensor, causal: bool) -> torch.Tensor:
    """(b, L, L) of the packed tokens from the masks per column."""
    tokens = layout.text_tokens + layout.image_tokens
    seen, begin = torch.zeros(len(valid), tokens, tokens, dtype=torch.bool), layout.text_tokens
    for number, (column, mask) in enumerate(
        zip(layout.columns, attention_masks(layout, valid, causal, torch.float64), strict=True)
    ):
        text = torch.arange(number * layout.text_slots, (number + 1) * layout.text_slots)
        places = torch.cat([text, torch.arange(begin, begin + column.tokens)])
        seen[:, places[:, None], places] = True if mask is None else mask[:, 0] == 0
        begin += column.tokens
    return seen


@settings(max_examples=25, deadline=None)
@given(layouts(), st.booleans(), st.integers(0, 99))
def test_block_masks_are_the_dense_rule(layout: BatchLayout, causal: bool, seed: int) -> None:
    valid = valid_of(layout, 2, seed)
    mask, exact = attention_blocks(layout, valid, causal), dense(layout, valid, causal)
    tokens = exact.shape[1]
    place = torch.arange(tokens)
    rule = mask.mask_mod(torch.arange(2)[:, None, None], torch.tensor(0), place[:, None], place)
    assert torch.equal(rule, exact)
    # Blocks that are skipped see nothing; blocks that are taken without asking the rule see all.
    blocks = -(-tokens // BLOCK)
    padded = torch.zeros(2, blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    padded[:, :tokens, :tokens] = exact
    tiles = padded.reshape(2, blocks, BLOCK, blocks, BLOCK).transpose(2, 3).flatten(3)
    listed = torch.zeros(2, blocks, blocks, dtype=torch.bool)  # partly, wholly
    for kind, (count, index) in enumerate(
        [(mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)]
    ):
        for row in range(blocks):
            listed[kind, row, index[0, 0, row, : count[0, 0, row]].long()] = True
    assert not (listed[0] & listed[1]).any()
    assert not (tiles.any(dim=-1) & ~listed.any(dim=0)).any()
    assert tiles.all(dim=-1)[:, listed[1]].all()


def test_grids_of_a_long_video() -> None:
    """The share of the score matrix that the frame-causal mask leaves at 241 frames (spec/performance 0.2)."""
    frames = [240] * 28 + [960, 3840, 3840]
    time = np.concatenate([np.zeros(128), np.repeat(np.arange(31), frames)])
    partly, wholly = block_grids(np.zeros(len(time)), time, 128)
    seen = (time[:, None] >= time[None]).mean()
    assert 0.55 < wholly.mean() < seen < (partly | wholly).mean() < 0.60


@torch.no_grad()
def test_packed_attention_equals_attention_by_column() -> None:
    """The uncompiled block path in float64 (FlexAttention has no backward on the CPU; `tests/gpu` has the rest)."""
    columns = []
    for stage, unit in ((2, 4), (1, 3)):
        sizes = [*history_shape(stage, unit), (stage, 1)]
        columns.append(Column(stage, tuple(Clip(n, 4 >> (2 - s), 8 >> (2 - s)) for s, n in sizes)))
    layout = BatchLayout(tuple(columns), 5)
    valid = valid_of(layout, 2, 3)
    real = torch.ones(2, layout.text_tokens + layout.image_tokens, 1, dtype=torch.float64)
    real[:, : layout.text_tokens] = valid.flatten(1)[..., None]
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, real.shape[1], 2, 16, generator=generator, dtype=torch.float64) for _ in range(3)]
    by_column = attend(
        *qkv, AttentionContext(layout, torch.empty(0), attention_masks(layout, valid, True, torch.float64))
    )
    packed = attend_blocks(*qkv, attention_blocks(layout, valid, True), compiled=False)
    torch.testing.assert_close(packed * real, by_column * real)
