"""Rectangles and corner against the dense mask in float64; no CUDA device needed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from m4v.core.errors import ConfigError
from m4v.flow.packing import history_shape
from m4v.kernels import kernel_set, use_kernels
from m4v.kernels.frames import OPERATOR, attend_frames, uses_frames
from m4v.kernels.frames_plan import (
    MOST_PARTS,
    ColumnPlan,
    frame_plan,
    frame_times,
    group_frames,
    key_tiles,
    query_tiles,
    text_tiles,
)
from m4v.kernels.selection import version_of
from m4v.model.attention import AttentionContext, attend, attention_frames, attention_masks
from m4v.model.layout import BatchLayout, Clip, Column

LAST = [240] * 28 + [960, 3840, 3840]  # tokens of each frame before the last one of 241 frames at 768p, and of it


def column(stage: int, unit: int, height: int = 4, width: int = 4) -> Column:
    sizes = [*history_shape(stage, unit), (stage, 1)]
    return Column(stage, tuple(Clip(n, height >> (2 - s), width >> (2 - s)) for s, n in sizes))


def given(layout: BatchLayout, batch: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v; which text is real, with holes between and one empty prompt; and the gradient, none of it for pads."""
    generator = torch.Generator().manual_seed(5)
    valid = torch.rand(batch, len(layout.columns), layout.text_slots, generator=generator) < 0.6
    valid[0, 0] = False
    tokens = layout.text_tokens + layout.image_tokens
    qkv = [torch.randn(batch, tokens, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    return qkv, valid, torch.randn(batch, tokens, 16, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("columns", "slots", "batch", "causal", "rows"),
    [
        ([column(2, 1)], 3, 1, True, 4),  # an image
        ([column(0, 8)], 5, 2, True, 3),  # 57 frames
        ([column(2, 16)], 2, 1, True, 5),  # 121
        ([column(2, 31)], 4, 1, True, 6),  # 241, more groups than the kernels can name
        ([column(1, 31)], 4, 1, True, 10_000),  # no rectangle
        ([column(0, 5), column(1, 5), column(1, 4), column(2, 5)], 3, 2, True, 8),
        ([column(0, 4), column(2, 3)], 3, 2, False, 8),
    ],
)
def test_equal_to_the_dense_mask(columns: list[Column], slots: int, batch: int, causal: bool, rows: int) -> None:
    layout = BatchLayout(tuple(columns), slots)
    qkv, valid, weight = given(layout, batch)
    leaves = [u.requires_grad_() for u in qkv]
    out = attend_frames(*leaves, attention_frames(layout, valid, causal), rows)
    masks = attention_masks(layout, valid, causal, torch.float64)
    dense = attend(*leaves, AttentionContext(layout, torch.empty(0), masks))
    torch.testing.assert_close(out, dense)
    for found, right in zip(
        torch.autograd.grad(out, leaves, weight), torch.autograd.grad(dense, leaves, weight), strict=True
    ):
        torch.testing.assert_close(found, right)


def test_what_compilers_see() -> None:
    """Shapes and types without data are those of the real results, gradients included."""
    layout = BatchLayout((column(0, 3), column(2, 3)), 3)
    qkv, valid, weight = given(layout, 2)
    shape = attention_frames(layout, valid, True)
    given_shape = (shape.frames, shape.columns, shape.slots, 8)
    qkv = [u.float() for u in qkv]
    backward = torch.ops.m4v.frame_attention_backward
    out, lse = OPERATOR(*qkv, shape.pads, *given_shape)
    gradients = backward(weight.float().view_as(out), *qkv, shape.pads, out, lse, *given_shape)
    fake = [u.to("meta") for u in (*qkv, shape.pads)]
    fake_out, fake_lse = OPERATOR(*fake, *given_shape)
    fakes = (fake_out, fake_lse, *backward(fake_out, *fake, fake_out, fake_lse, *given_shape))
    for real, seen in zip((out, lse, *gradients), fakes, strict=True):
        assert (real.shape, real.dtype, real.stride()) == (seen.shape, seen.dtype, seen.stride())


def test_groups_of_a_long_video() -> None:
    groups = group_frames(LAST, 1920)
    assert [(g.first, g.end, g.dense) for g in groups] == [
        (0, 1920, 0), (1920, 3840, 2160), (3840, 5760, 4080), (5760, 6720, 6000), (6720, 7680, 7680),
        (7680, 11520, 11520), (11520, 15360, 15360),
    ]  # fmt: skip
    seen, dense, corner = frame_plan(tuple(LAST), (len(LAST),), 128, 1920).columns[0].scores
    assert seen == dense + corner
    assert 0.56 < seen / 15488**2 < 0.57
    assert corner < 0.07 * seen
    assert sum(g.dense > 0 for g in group_frames([3600] * 61, 1920)) <= MOST_PARTS
    # Equal beginnings are cut alike, so that the columns of all units share the plans of cuDNN.
    assert group_frames([240] * 20, 1920)[:2] == groups[:2]


@pytest.mark.parametrize("rows", [3, 8, 50, 1000])
def test_tiles_cover_the_corner_once(rows: int) -> None:
    """What the CUDA kernels run on: each score of the corner belongs to one tile of queries and one of keys."""
    plan = frame_plan((2, 2, 2, 2, 4, 8, 8, 3, 3, 3), (7, 3), 5, rows)
    times = frame_times(plan)
    for one in plan.columns:
        visible = corner_scores(one, times)
        tokens = len(times)
        by_query, by_key = np.zeros((2, tokens, tokens), int)
        for first, count, _, _, _, _, low, whole, end in query_tiles(one, 4):
            q = slice(first, first + count)
            by_query[q, one.text : one.text + one.slots] += 1
            assert (times[low:whole] <= times[q].min()).all()
            by_query[q, low:end] += times[low:end] <= times[q, None]
        for first, count, low, whole, end, by_text in key_tiles(one, 4):
            k = slice(first, first + count)
            assert (times[whole:end] >= times[k].max()).all()
            by_key[low:end, k] += times[low:end, None] >= times[k]
            if by_text:
                by_key[one.text : one.text + one.slots, k] += times[k] == 0
        for first, count, low, end, _ in text_tiles(one, 2)[0]:
            by_key[low:end, first : first + count] += 1
        assert (by_query == visible).all()
        assert (by_key == visible).all()


def corner_scores(one: ColumnPlan, times: np.ndarray) -> np.ndarray:
    tokens = np.r_[one.text : one.text + one.slots, one.image : one.image + sum(one.frames)]
    scores = np.zeros((len(times), len(times)), int)
    scores[tokens[:, None], tokens] = times[tokens, None] >= times[tokens]
    for group in one.groups:
        scores[one.image + group.first : one.image + group.end, one.image : one.image + group.dense] = 0
    return scores


def test_when_frames_are_taken() -> None:
    cpu = torch.device("cpu")
    with use_kernels(attention="frames"):
        assert not uses_frames(cpu, torch.bfloat16, 8192, 64)
        assert kernel_set("cpu")["attention"] == "dense"
        if version_of("triton") is None:
            with pytest.raises(ConfigError, match=r"needs triton, which is not installed.*M4V_ATTENTION=dense"):
                kernel_set("cuda")
        else:
            assert kernel_set("cuda")["attention"].startswith("frames 1 torch ")
