"""Frame-causal attention by rectangles and a corner against the dense mask in float64, on a GPU.

Without a GPU the kernels can be tried at tiny sizes under Triton's interpreter: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from m4v.flow.packing import history_shape
from m4v.kernels import use_kernels
from m4v.kernels.frames import OPERATOR, FrameShape, attend_frames, uses_frames
from m4v.model.attention import AttentionContext, attend, attention_frames, attention_masks
from m4v.model.checkpointing import run_block
from m4v.model.layout import BatchLayout, Clip, Column

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not INTERPRETED, reason="no CUDA device"),
]
TYPE = torch.float32 if INTERPRETED else torch.bfloat16
BOUND = 1e-5 if INTERPRETED else 3 * 2**-9  # relative norm; rectangles round their share once more than one kernel does

Case = tuple[list[tuple[int, int, int, int]], int, int, bool, int, int]
TINY: list[Case] = [
    ([(1, 3, 4, 4)], 1, 3, True, 16, 8),
    ([(0, 4, 8, 8), (2, 2, 4, 8)], 2, 5, True, 16, 8),
]
FULL: list[Case] = [
    # (stage, unit, height, width) of each column, batch, text slots, causal, head size, rows of a group
    ([(0, 1, 16, 16)], 1, 1, True, 64, 1920),
    ([(2, 1, 48, 80)], 2, 128, True, 64, 1920),  # an image
    ([(2, 8, 48, 80)], 1, 128, True, 64, 1920),  # 57 frames at 768p
    ([(0, 31, 48, 80)], 1, 128, True, 64, 960),  # 241 frames, low stage
    ([(2, 5, 24, 40)], 2, 77, True, 64, 130),
    ([(2, 5, 24, 40)], 2, 77, True, 128, 130),
    ([(0, 8, 28, 36), (1, 3, 24, 40), (1, 4, 20, 12), (2, 4, 24, 40)], 2, 37, True, 64, 257),
    ([(1, 6, 24, 40), (2, 2, 8, 24)], 1, 128, False, 64, 500),
    ([(2, 6, 24, 40)], 2, 33, True, 64, 100_000),  # no rectangle
]


def column(stage: int, unit: int, height: int, width: int) -> Column:
    """A packed column as training makes it; height and width are tokens of the highest stage."""
    clips = [Clip(n, height >> (2 - s), width >> (2 - s)) for s, n in history_shape(stage, unit)]
    return Column(stage, (*clips, Clip(1, height >> (2 - stage), width >> (2 - stage))))


def given(case: Case, heads: int = 3) -> tuple[BatchLayout, Tensor, list[Tensor], Tensor]:
    """Layout, real text with holes and an empty prompt, q, k, v, and a gradient that is zero for pads."""
    columns, batch, slots, _, size, _ = case
    layout = BatchLayout(tuple(column(*c) for c in columns), slots)
    generator = torch.Generator(DEVICE).manual_seed(slots)
    valid = torch.rand(batch, len(columns), slots, generator=generator, device=DEVICE) < 0.7
    valid[0, 0] = False
    tokens = layout.text_tokens + layout.image_tokens
    qkv = [torch.randn(batch, tokens, heads, size, generator=generator, device=DEVICE).to(TYPE) for _ in range(3)]
    weight = torch.randn(batch, tokens, heads * size, generator=generator, device=DEVICE).to(TYPE)
    return layout, valid, qkv, weight


@contextmanager
def deterministic_mode(enabled: bool = True) -> Iterator[None]:
    """Gradients that repeat: those of cuDNN, which runs the rectangles otherwise, differ from run to run."""
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def results(qkv: list[Tensor], weight: Tensor, shape: FrameShape, rows: int) -> list[Tensor]:
    """The result and the gradients of q, k, v."""
    leaves = [u.detach().requires_grad_() for u in qkv]
    out = attend_frames(*leaves, shape, rows)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", TINY if INTERPRETED else FULL, ids=str)
def test_equal_to_the_dense_mask(case: Case, deterministic: bool) -> None:
    layout, valid, qkv, weight = given(case)
    with deterministic_mode(deterministic):
        found = results(qkv, weight, attention_frames(layout, valid, case[3]), case[5])
    leaves = [u.double().requires_grad_() for u in qkv]
    masks = attention_masks(layout, valid, case[3], torch.float64)
    right = attend(*leaves, AttentionContext(layout, torch.empty(0), masks))
    exact = [right.detach(), *torch.autograd.grad(right, leaves, weight.double())]
    # A token that sees itself alone gives its key no gradient: there the error is absolute.
    errors = [float((f.double() - e).norm() / e.norm().clamp(min=0.05)) for f, e in zip(found, exact, strict=True)]
    print(" ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < BOUND


@pytest.mark.skipif(INTERPRETED, reason="one thread has no races")
@pytest.mark.parametrize("case", [FULL[2], FULL[6]], ids=str)
def test_equal_bits_in_deterministic_mode(case: Case) -> None:
    """A race or a sum in changing order would show within twenty runs, in memory that others have used."""
    layout, valid, qkv, weight = given(case, heads=30)
    shape = attention_frames(layout, valid, case[3])
    with deterministic_mode():
        first = results(qkv, weight, shape, case[5])
        for _ in range(20):
            dirt = torch.full((1 << 26,), float("nan"), device="cuda")
            del dirt
            assert all(map(torch.equal, first, results(qkv, weight, shape, case[5])))


def test_selective_recomputation() -> None:
    """The gradients are those without recomputation."""
    case = TINY[0] if INTERPRETED else FULL[5]
    layout, valid, qkv, weight = given(case)
    context = AttentionContext(layout, torch.empty(0), [], frames=attention_frames(layout, valid, True))
    gradients = []
    for mode in ("none", "selective"):
        leaves = [u.detach().requires_grad_() for u in qkv]
        with deterministic_mode():
            run_block(lambda q, k, v: attend(q, k, v, context), mode, *leaves).backward(weight)
        gradients.append([u.grad for u in leaves])
    for plain, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, plain)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_compiled_and_captured() -> None:
    """Within torch.compile without a graph break, and in a CUDA graph, whose inputs may change."""
    case = FULL[5]
    layout, valid, qkv, _ = given(case)
    shape = attention_frames(layout, valid, True)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_frames(2 * q, k, v, shape, case[5]) + 1

    plain = run(*qkv)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, dynamic=False)(*qkv), plain)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = run(*qkv)
    qkv[0].copy_(torch.randn_like(qkv[0]))
    graph.replay()
    torch.testing.assert_close(captured, run(*qkv))
    given_shape = (shape.pads, shape.frames, shape.columns, shape.slots, case[5])
    with deterministic_mode():  # it compares gradients
        torch.library.opcheck(OPERATOR, (*(u.requires_grad_() for u in qkv), *given_shape))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_when_frames_are_used() -> None:
    cuda = torch.device("cuda")
    with use_kernels(attention="frames"):
        assert uses_frames(cuda, torch.bfloat16, 512, 64)
        assert not uses_frames(cuda, torch.float32, 8192, 64)
        assert not uses_frames(cuda, torch.bfloat16, 8192, 96)
    with use_kernels(attention="flex"):
        assert not uses_frames(cuda, torch.bfloat16, 8192, 64)
