"""Block-sparse attention against the dense mask in float64, forwards and gradients."""

import pytest
import torch
from torch import Tensor

from m4v.flow.packing import history_shape
from m4v.kernels import use_kernels
from m4v.kernels.blocks import uses_blocks
from m4v.model.attention import AttentionContext, attend, attention_blocks, attention_masks
from m4v.model.layout import BatchLayout, Clip, Column

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BFLOAT16 = 2 * 2**-9  # relative norm; probabilities and results are rounded once each


def column(stage: int, unit: int, height: int, width: int) -> Column:
    """A packed column as training makes it; height and width are tokens of the highest stage."""
    clips = [Clip(n, height >> (2 - s), width >> (2 - s)) for s, n in history_shape(stage, unit)]
    return Column(stage, (*clips, Clip(1, height >> (2 - stage), width >> (2 - stage))))


def attended(layout: BatchLayout, valid: Tensor, causal: bool, qkv: list[Tensor], weight: Tensor) -> list[list[Tensor]]:
    """[result, gradients] by blocks in the given type and by dense masks in float64, pads of the text zeroed."""
    real = torch.ones(len(valid), weight.shape[1], 1, device="cuda", dtype=weight.dtype)
    real[:, : layout.text_tokens] = valid.flatten(1)[..., None].to(weight.dtype)
    found = []
    for dtype in (weight.dtype, torch.float64):
        leaves = [u.to(dtype).detach().requires_grad_() for u in qkv]
        if dtype == torch.float64:
            context = AttentionContext(layout, torch.empty(0), attention_masks(layout, valid, causal, dtype))
        else:
            context = AttentionContext(layout, torch.empty(0), [], attention_blocks(layout, valid, causal))
        out = attend(*leaves, context) * real.to(dtype)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, weight.to(dtype))])
    return found


@pytest.mark.parametrize(
    ("columns", "batch", "slots", "causal"),
    [
        ([(0, 1, 4, 4)], 1, 1, True),
        ([(2, 1, 12, 20)], 2, 128, True),
        ([(2, 31, 12, 20)], 1, 128, True),
        ([(2, 5, 12, 20)], 2, 77, True),
        ([(0, 8, 28, 36), (1, 3, 12, 20), (2, 4, 12, 20)], 2, 37, True),
        ([(1, 6, 12, 20), (2, 2, 4, 12)], 1, 128, False),
    ],
    ids=str,
)
def test_blocks_equal_the_dense_mask(
    columns: list[tuple[int, int, int, int]], batch: int, slots: int, causal: bool
) -> None:
    layout = BatchLayout(tuple(column(*c) for c in columns), slots)
    generator = torch.Generator("cuda").manual_seed(slots)
    length = torch.randint(0, slots + 1, (batch, len(columns), 1), generator=generator, device="cuda")
    length[0, 0] = 0  # an empty prompt
    valid = torch.arange(slots, device="cuda") < length
    tokens = layout.text_tokens + layout.image_tokens
    qkv = [torch.randn(batch, tokens, 3, 64, generator=generator, device="cuda").bfloat16() for _ in range(3)]
    weight = torch.randn(batch, tokens, 192, generator=generator, device="cuda").bfloat16()
    blocks, dense = attended(layout, valid, causal, qkv, weight)
    # A token that sees itself alone gives its key no gradient: there the error is absolute.
    errors = [float((b.double() - d).norm() / d.norm().clamp(min=0.05)) for b, d in zip(blocks, dense, strict=True)]
    print(" ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < BFLOAT16


def test_when_blocks_are_used() -> None:
    cuda, size = torch.device("cuda"), (4096, 64)
    assert uses_blocks(cuda, torch.bfloat16, *size)
    assert not uses_blocks(cuda, torch.bfloat16, 512, 64)
    assert not uses_blocks(cuda, torch.float32, *size)
    assert not uses_blocks(torch.device("cpu"), torch.bfloat16, *size)
    with use_kernels(attention="flex"):
        assert uses_blocks(cuda, torch.float32, 512, 64)
        assert not uses_blocks(cuda, torch.float64, *size)
    with use_kernels(attention="dense"):
        assert not uses_blocks(cuda, torch.bfloat16, *size)
