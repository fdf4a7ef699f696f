"""Each operator of the blocks' glue by itself: what torch's compilers are told of it is what it does, at odd sizes, in
memory full of NaN, and the same bits when it runs again. `test_gpu_recomposition.py` has the numbers.

As there: on a GPU, or anywhere with TRITON_INTERPRET=1.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fused_models import DEVICE, MARKS, poisoned
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from m4v.model.checkpointing import run_block
from m4v.model.layers import NORM_EPS, Linear
from m4v.model.layout import BatchLayout, Clip, Column, rotary
from m4v.model.recomposition import Recomposition, recomposition, text_order
from m4v.model.tables import composition_table
from m4v.model.token_runs import TokenRuns, packed_runs, piece_lists, piece_table

pytestmark = MARKS
BATCH, HEADS, SIZE, INNER = 2, 3, 16, 20
WIDTH = HEADS * SIZE
# An image without any history, and a column whose noisy frame is cut into four pieces.
LAYOUT = BatchLayout((Column(0, (Clip(1, 1, 3),)), Column(1, (Clip(1, 1, 3), Clip(1, 2, 6)))), 3)
TOKENS = LAYOUT.text_tokens + LAYOUT.image_tokens
FRAMES = sum(column.frames for column in LAYOUT.columns)
Case = tuple[Any, tuple[Any, ...]]


def normal(*shape: int) -> Tensor:
    """Float32 that wants a gradient."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()


def runs(registers: int) -> TokenRuns:
    return packed_runs(LAYOUT, DEVICE, registers)


def tables(closing: bool = True) -> Recomposition:
    """Of a prompt with holes, one that is full and one without any token."""
    valid = torch.tensor([[[1, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 1, 0]]], dtype=torch.bool, device=DEVICE)
    table = composition_table(LAYOUT, 0, "serpentine", True, closing, 8, 3, DEVICE)
    return recomposition(table, text_order(valid), TOKENS, torch.float32)


def gathers(r: Recomposition) -> tuple[Tensor | None, ...]:
    return r.source, r.real, r.first, r.second, r.valid


def modulate(registers: bool) -> Case:
    from m4v.kernels.modulation import modulate as operator

    made = runs(3 if registers else 0)
    shift, scale, _ = normal(BATCH, 2, 3 * WIDTH).chunk(3, dim=-1)
    types = normal(3, WIDTH) if registers else None
    return operator, (normal(BATCH, TOKENS, WIDTH), shift, scale, types, *made[:3], made.rows, NORM_EPS)


def gated() -> Case:
    from m4v.kernels.modulation import gated_sum as operator

    gate = normal(BATCH, 2, 3 * WIDTH).chunk(3, dim=-1)[2]
    return operator, (normal(BATCH, TOKENS, WIDTH), gate, normal(BATCH, TOKENS, WIDTH), *runs(0)[:3])


def compose(closing: bool, columns: int = HEADS) -> Case:
    """`columns` of dt, of which the first are read."""
    from m4v.kernels.composition import compose as operator

    rows = [normal(BATCH, TOKENS + FRAMES, n) for n in (WIDTH, WIDTH, WIDTH, columns)]
    turn = rotary(LAYOUT, (4, 6, 6), 1e4, True, DEVICE, False)
    vectors = (normal(SIZE), normal(SIZE), turn, normal(HEADS))
    return operator, (*rows, *vectors, *gathers(tables(closing)), NORM_EPS, closing)


def mix(parts: str) -> Case:
    from m4v.kernels.mixing import mix as operator

    r, lists = tables(), piece_lists(LAYOUT, DEVICE)
    scans, temporals = "scan" in parts, "temporal" in parts
    extent = TOKENS + FRAMES if scans else TOKENS
    y, z = (normal(BATCH, n, WIDTH) if scans else None for n in (r.length, extent))
    other = normal(BATCH, TOKENS, WIDTH) if "other" in parts else None
    temporal = normal(BATCH, HEADS, len(lists.bounds) - 1, SIZE) if temporals else None
    found = (lists.back, lists.bounds, lists.members) if temporals else (None,) * 3
    mlp = None if "alone" in parts else normal(BATCH, extent, INNER)
    return operator, (
        y, z, other, temporal, normal(1) if temporals else None, mlp,
        *(gathers(r) if scans else (None,) * 5), *found, TOKENS, WIDTH,
    )  # fmt: skip


def pool() -> Case:
    from m4v.kernels.pieces import pool_pieces as operator

    lists = piece_lists(LAYOUT, DEVICE)
    rows = normal(BATCH, TOKENS + FRAMES, WIDTH)
    return operator, (rows, lists.bounds, lists.members, lists.back, LAYOUT.text_tokens)


def attend() -> Case:
    from m4v.kernels.piece_attention import attend_pieces as operator

    tokens = len(piece_lists(LAYOUT, DEVICE).bounds) - 1
    return operator, (*(normal(BATCH, HEADS, tokens, SIZE) for _ in range(3)), *piece_table(LAYOUT, DEVICE))


def norm(kind: str) -> Case:
    from m4v.kernels.head_norm import norm_heads as operator

    text, image = LAYOUT.text_tokens, LAYOUT.image_tokens
    turn = rotary(LAYOUT, (4, 6, 6), 1e4, False, DEVICE, False)
    if kind == "joint":
        qkv, others = ([normal(BATCH, n, WIDTH) for _ in range(3)] for n in (image, text))
        return operator, (*qkv, others, [normal(SIZE) for _ in range(4)], turn, False, NORM_EPS)
    weights = [normal(SIZE) for _ in range(2)]
    q, k, v = (normal(BATCH, TOKENS, WIDTH) for _ in range(3))
    if kind == "single":
        return operator, (q, k, None, [], weights, turn, False, NORM_EPS)
    return operator, (q, k, v, [], weights, None, True, NORM_EPS)


CASES: dict[str, Callable[[], Case]] = {
    "modulate": lambda: modulate(False),
    "modulate, registers": lambda: modulate(True),
    "gated_sum": gated,
    "compose": lambda: compose(True),
    "compose, one copy of the text": lambda: compose(False),
    "compose, more columns of dt": lambda: compose(True, 8),
    "mix, all": lambda: mix("scan other temporal"),
    "mix, scan": lambda: mix("scan"),
    "mix, other": lambda: mix("other"),
    "mix, all but the MLP": lambda: mix("scan other temporal alone"),
    "mix, other alone": lambda: mix("other alone"),
    "pool_pieces": pool,
    "attend_pieces": attend,
    "norm_heads, joint": lambda: norm("joint"),
    "norm_heads, single": lambda: norm("single"),
    "norm_heads, pieces": lambda: norm("pieces"),
}


def flat(values: Any) -> list[Tensor]:
    """The tensors of what an operator takes or gives."""
    if isinstance(values, Tensor):
        return [values]
    return [u for value in values for u in flat(value)] if isinstance(values, list | tuple) else []


@pytest.mark.parametrize("closing", [True, False])
def test_composition_with_its_convolution(closing: bool) -> None:
    """The bits of one after the other, by torch's rules of operators; a CUDA graph of it gives them again."""
    from m4v.kernels.composition import compose_convolved
    from m4v.kernels.convolution import convolve_silu

    operator, given = compose(closing)
    with torch.no_grad(), poisoned():
        arguments = [u.detach() if isinstance(u, Tensor) else u for u in given]
        r = tables(closing)
        weight, bias = normal(WIDTH, 4).detach(), normal(WIDTH).detach()
        all_given = (*arguments[:8], r.source, r.real, *arguments[-2:], weight, bias)
        c, b, x, sizes = operator(*arguments)
        expected = (c, b, convolve_silu(x, weight, bias), sizes)
        found = compose_convolved(*all_given)
        assert all(map(torch.equal, found, expected))
        torch.library.opcheck(torch.ops.m4v.compose_convolved.default, all_given)
        if DEVICE == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = compose_convolved(*all_given)
            graph.replay()
            assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("case", CASES)
def test_rules_of_torch_and_equal_bits(case: str) -> None:
    operator, arguments = CASES[case]()
    leaves = [u for u in flat(arguments) if u.requires_grad]
    found = []
    for _ in range(2):
        with poisoned():
            outs = [u for u in flat(operator(*arguments)) if u.requires_grad]
            weights = [torch.linspace(-1, 1, u.numel(), device=DEVICE).view_as(u) for u in outs]
            found.append([*outs, *torch.autograd.grad(outs, leaves, weights)])
    assert all(bool(u.isfinite().all()) for u in found[0])
    assert all(map(torch.equal, *found))
    torch.library.opcheck(operator.library, arguments)


def test_columns_behind_dt_are_not_read() -> None:
    """They change no bit, and their own gradient is zero."""
    operator, arguments = compose(True)
    dt = arguments[3]
    junk = torch.full((*dt.shape[:2], 8 - HEADS), float("inf"), device=DEVICE)
    wide = torch.cat([dt.detach(), junk], dim=-1).requires_grad_()
    found = []
    for steps in (dt, wide):
        with poisoned():
            outs = operator(*arguments[:3], steps, *arguments[4:])
            weights = [torch.linspace(-1, 1, u.numel(), device=DEVICE).view_as(u) for u in outs]
            leaves = [*arguments[:3], steps, arguments[7]]
            found.append([*outs, *torch.autograd.grad(outs, leaves, weights)])
    grown = found[1][7]
    assert float(grown[..., HEADS:].abs().max()) == 0
    found[1][7] = grown[..., :HEADS]
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("parts", ["scan other temporal", "other"])
def test_mixers_without_the_mlp(parts: str) -> None:
    """The same bits as beside it."""
    operator, arguments = mix(parts)
    with torch.no_grad(), poisoned():
        beside = operator(*arguments)
        alone = operator(*arguments[:5], None, *arguments[6:])
    assert alone.is_contiguous()
    assert torch.equal(alone, beside[..., :WIDTH])


@pytest.mark.parametrize("watched", ["", "forward", "backward", "both"])
def test_a_mode_around_one_pass_changes_no_gradient(watched: str) -> None:
    """A product behind the block's kept sum, of the same shape: it must not be given the sum."""
    from m4v.model.fused import _left
    from m4v.model.products import product

    _, (x, gate, inner, *_) = gated()
    torch.manual_seed(0)
    layer = Linear(WIDTH, WIDTH).to(DEVICE)
    leaves = [x, inner, *layer.parameters()]

    def block(x: Tensor, inner: Tensor) -> Tensor:
        return product(_left(x, gate, inner, runs(0)).sin(), layer).square()

    def gradients(recompute: Any) -> tuple[Tensor, ...]:
        with FlopCounterMode(display=False) if watched in ("forward", "both") else nullcontext():
            loss = run_block(block, recompute, x, inner).sum()
        with FlopCounterMode(display=False) if watched in ("backward", "both") else nullcontext():
            return torch.autograd.grad(loss, leaves)

    assert all(map(torch.equal, gradients("none"), gradients("selective")))
