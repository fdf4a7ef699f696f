"""The temporal branch's attention between pieces against float64: any number of pieces and places, several columns at
once, in memory full of NaN, and the same bits when it runs again. As `test_gpu_glue_operators.py`: anywhere with
TRITON_INTERPRET=1."""

from itertools import accumulate
from operator import mul

import pytest
import torch
from fused_models import DEVICE, INTERPRETED, MARKS, poisoned
from torch import Tensor

pytestmark = MARKS
BATCH, HEADS, SIZE = 2, 2, 16
NAMES = ("result", "q", "k", "v")
# Pieces and places of each column: one block of 16, 32 and 64 pieces, and more than the kernels take. Vectors of
# one to three parts, none of them whole.
CASES = {
    "few": ([1, 3, 16], [5, 130, 3]),
    "some": ([17, 2], [3, 67]),
    "many": ([40], [66]),
    "beyond": ([65, 2], [2, 3]),
}


def exact(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, pieces: list[int], places: list[int]) -> Tensor:
    """The rule, one column after the other."""
    outs, row, score = [], 0, 0
    for count, width in zip(pieces, places, strict=True):
        a, b, c = (u[:, :, row : row + count * width].unflatten(2, (count, width)).flatten(3) for u in (q, k, v))
        mask = seen[score : score + count * count].view(count, count)
        scores = (a @ b.mT / a.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
        outs.append((scores.softmax(-1) @ c).unflatten(3, (width, -1)).flatten(2, 3))
        row, score = row + count * width, score + count * count
    return torch.cat(outs, dim=2)


def taken(case: str, given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients of q, k, v for the incoming gradient, all four `given`, and what float64 makes of them."""
    from m4v.kernels.piece_attention import attend_pieces

    pieces, places = CASES[case]
    generator = torch.Generator().manual_seed(3)
    rows, scores = ([0, *accumulate(u)] for u in (map(mul, pieces, places), map(mul, pieces, pieces)))
    seen = torch.cat([(torch.rand(n, n, generator=generator) > 0.4).logical_or(torch.eye(n)).flatten() for n in pieces])
    fields = [list(u) for u in zip(rows[:-1], pieces, places, scores[:-1], strict=True)]
    table, seen = torch.tensor(fields, dtype=torch.int32).to(DEVICE), seen.to(DEVICE)
    found = []
    for _ in range(2):
        leaves = [u.detach().clone().requires_grad_() for u in given[:3]]
        with poisoned():
            out, _ = attend_pieces(*leaves, seen, table, pieces, places)
            found.append([out.detach(), *torch.autograd.grad(out, leaves, given[3])])
    assert all(map(torch.equal, *found))
    wide = [u.double().requires_grad_() for u in given[:3]]
    out = exact(*wide, seen, pieces, places)
    return found[0], [out.detach(), *torch.autograd.grad(out, wide, given[3].double())]


def values(case: str, dtype: torch.dtype, scales: tuple[float, ...], shift: float = 0.0) -> list[Tensor]:
    """q, k, v and an incoming gradient; the last two around `shift`."""
    generator = torch.Generator().manual_seed(len(case))
    shape = (BATCH, HEADS, sum(map(mul, *CASES[case])), SIZE)
    drawn = [scale * torch.randn(shape, generator=generator) for scale in scales]
    return [(u + shift * (number > 1)).to(DEVICE, dtype) for number, u in enumerate(drawn)]


@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients(case: str, dtype: torch.dtype) -> None:
    most = 1e-5 if dtype == torch.float32 else 1e-2
    found, wanted = taken(case, values(case, dtype, (2, 2, 2, 2)))
    for name, one, other in zip(NAMES, found, wanted, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).norm() / other.norm()) < most, name


@pytest.mark.parametrize("case", ["beyond"] if INTERPRETED else CASES)
def test_pieces_that_are_alike(case: str) -> None:
    """As the frames of a video: what the gradient of a score is made of is nearly the same for all, so weights must
    not be rounded on their way (as bfloat16 they cost q a tenth of its gradient). Without a GPU: what has no kernel."""
    found, wanted = taken(case, values(case, torch.bfloat16, (1, 1, 0.25, 0.25), shift=4.0))
    for name, one, other in zip(NAMES, found, wanted, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 1e-2, name
