"""Our causal convolution with SiLU against its definition in float64: values and gradients, at odd sizes and for packed
sequences. On a GPU in bfloat16 and float32; with TRITON_INTERPRET=1 on any machine, in float32."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.kernels import use_kernels
from m4v.kernels.scan import causal_conv_silu, convolves_fast
from m4v.model.mamba import CausalConv

pytest.importorskip("triton")

from m4v.kernels.convolution import BACKWARD, FORWARD, backward_with, convolve_gathered, convolve_silu, forward_with

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device"),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPES = {torch.float32: 1e-6} if INTERPRETED else {torch.float32: 1e-6, torch.bfloat16: 2 * 2**-9}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def exact(x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None = None) -> Tensor:
    """Sequence by sequence."""
    if column is not None:
        rows = []
        for row, of_row in zip(x, column, strict=True):
            lengths = torch.unique_consecutive(of_row, return_counts=True)[1].tolist()
            rows.append(torch.cat([exact(part[None], weight, bias)[0] for part in row.split(lengths)]))
        return torch.stack(rows)
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=x.shape[2])).transpose(1, 2)


def distance(found: Tensor, expected: Tensor) -> float:
    assert found.isfinite().all()
    found, expected = found.detach(), expected.detach()
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture
def poisoned():  # type: ignore[no-untyped-def]
    """Memory that is asked for without a value holds NaN: what a kernel leaves out would be seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "channels", "width", "packed"),
    [
        (1, 1, 1, 4, None), (2, 2, 65, 4, None), (1, 131, 70, 4, None), (2, 64, 64, 2, None), (1, 33, 5, 8, None),
        (1, 131, 70, 4, (1, 2, 61, 67)), (1, 64, 64, 4, (32, 32)), (2, 40, 3, 3, (39, 1)),
        (1, 90, 9, 8, (3, 45, 5, 37)), (1, 67, 72, 2, None),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("poisoned")
def test_values_and_gradients(
    batch: int, length: int, channels: int, width: int, packed: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    column = None
    if packed is not None:
        of_row = torch.repeat_interleave(torch.arange(len(packed)), torch.tensor(packed))
        column = of_row.expand(batch, length).to(DEVICE)
    given = [drawn(0, batch, length, channels), drawn(1, channels, width), drawn(2, channels)]
    mine = [u.to(dtype).requires_grad_() for u in given]
    theirs = [u.detach().double().requires_grad_() for u in mine]
    grad = drawn(3, batch, length, channels).to(dtype)
    found, expected = convolve_silu(*mine, column), exact(*theirs, column)
    assert found.dtype == dtype
    assert distance(found, expected) < TYPES[dtype]
    gradients = torch.autograd.grad(found, mine, grad)
    for one, other in zip(gradients, torch.autograd.grad(expected, theirs, grad.double()), strict=True):
        assert distance(one, other) < TYPES[dtype]
    again = torch.autograd.grad(convolve_silu(*mine, column), mine, grad)
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_slices_of_wider_rows_are_read_in_place(packed: bool) -> None:
    """x and the gradient as slices of wider rows: the bits of their copies, but for the sums over tokens, which another
    layout may add in another order."""
    wide, of_out = drawn(0, 2, 75, 40).float(), drawn(3, 2, 150, 20).float()
    weight, bias = (drawn(n, *shape).float().requires_grad_() for n, shape in ((1, (17, 4)), (2, (17,))))
    column = (torch.arange(75, device=DEVICE) > 33).int().expand(2, 75) if packed else None
    kinds = ((wide[..., 5:22], of_out[:, ::2, :17]), (wide[:, :, 5:22].contiguous(), of_out[:, ::2, :17].contiguous()))
    sliced: list[Tensor] = []
    copied: list[Tensor] = []
    for (x, grad), found in zip(kinds, (sliced, copied), strict=True):
        x = x.detach().requires_grad_()
        out = convolve_silu(x, weight, bias, column)
        found += [out, *torch.autograd.grad(out, (x, weight, bias), grad)]
    assert all(map(torch.equal, sliced[:2], copied[:2]))
    for one, other in zip(sliced[2:], copied[2:], strict=True):
        assert distance(one, other.double()) < 1e-6


@pytest.mark.parametrize("number", range(max(len(FORWARD), len(BACKWARD))))
@pytest.mark.usefixtures("poisoned")
def test_every_configuration(number: int) -> None:
    """On tokens that end within a segment's group, with more channels than a block has."""
    x, grad = (drawn(n, 1, 149, 137).float() for n in (0, 3))
    weight, bias = drawn(1, 137, 4).float(), drawn(2, 137).float()
    given = [u.double().requires_grad_() for u in (x, weight, bias)]
    expected = exact(*given)
    found = [forward_with(FORWARD[number % len(FORWARD)], x, weight, bias, None)]
    found += backward_with(BACKWARD[number % len(BACKWARD)], grad, x, weight, bias, None)
    for one, other in zip(found, (expected, *torch.autograd.grad(expected, given, grad.double())), strict=True):
        assert distance(one, other) < TYPES[torch.float32]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "extent", "length", "channels", "width"),
    [
        (1, 1, 1, 1, 4),
        (2, 9, 2, 65, 4),
        (1, 131, 149, 137, 4),
        (3, 20, 67, 70, 2),
        (2, 33, 40, 5, 8),
        (1, 9, 64, 128, 4),
    ],
)
@pytest.mark.usefixtures("poisoned")
def test_gathered_rows_give_the_bits_of_copied_ones(
    batch: int, extent: int, length: int, channels: int, width: int, dtype: torch.dtype
) -> None:
    """Pads among the rows and at both ends, rows that are read twice and rows of NaN that nobody asks for."""
    given = (drawn(0, batch, extent + 1, channels), drawn(1, channels, width), drawn(2, channels))
    x, weight, bias = (u.to(dtype) for u in given)
    x[:, extent] = torch.nan
    generator = torch.Generator().manual_seed(4)
    source = torch.randint(extent, (batch, length), generator=generator)
    source += torch.arange(batch)[:, None] * (extent + 1)
    pads = torch.rand(batch, length, generator=generator) < 0.2
    pads[:, :1], pads[:, -1:] = True, True
    pads[:, length // 2] = False
    source, pads = source.to(DEVICE), pads.to(DEVICE)
    copied = x.flatten(0, 1)[source].masked_fill(pads[..., None], 0)
    found = convolve_gathered(x, source.masked_fill(pads, -1).int(), weight, bias)
    assert found.dtype == dtype
    assert torch.equal(found, convolve_silu(copied, weight, bias))
    assert distance(found, exact(copied.double(), weight.double(), bias.double())) < TYPES[dtype]


def test_tokens_depend_on_the_past_alone() -> None:
    x, weight, bias = (drawn(n, *shape).float() for n, shape in enumerate(((1, 80, 6), (6, 4), (6,))))
    whole, changed = convolve_silu(x, weight, bias), x.clone()
    changed[:, 50:] += 1
    assert torch.equal(convolve_silu(changed, weight, bias)[:, :50], whole[:, :50])
    assert torch.equal(convolve_silu(x.transpose(0, 1).contiguous().transpose(0, 1), weight, bias), whole)


def test_traced_as_one_operator() -> None:
    x, weight, bias = (drawn(n, *shape).float() for n, shape in enumerate(((1, 20, 6), (6, 4), (6,))))
    column = torch.zeros(1, 20, dtype=torch.int32, device=DEVICE)
    given = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    for of in (None, column):
        torch.library.opcheck(torch.ops.m4v.causal_conv_silu.default, (*given, of))


def test_other_shapes_are_refused() -> None:
    x, weight, bias = torch.zeros(1, 8, 6), torch.zeros(6, 4), torch.zeros(6)
    for wrong in ((x, torch.zeros(6, 1), bias), (x, torch.zeros(5, 4), bias), (x, weight, torch.zeros(5)),
                  (x[0], weight, bias), (x, weight, bias, torch.zeros(1, 7))):  # fmt: skip
        with pytest.raises(ValueError, match="no convolution"):
            convolve_silu(*wrong)


def test_the_mixer_takes_it() -> None:
    """Where our kernels are asked for by name, and with the result of plain torch."""
    conv = CausalConv(6, 4).to(DEVICE)
    with torch.no_grad():
        conv.weight.copy_(drawn(1, 6, 4))
        conv.bias.copy_(drawn(2, 6))
    x = drawn(0, 2, 37, 6).float()
    with use_kernels(scan="triton"), torch.no_grad():
        assert convolves_fast(x, 4)
        assert not convolves_fast(x.double(), 4)
        found = conv(x)
        assert torch.equal(found, causal_conv_silu(x, conv.weight, conv.bias))
    with use_kernels(scan="torch"), torch.no_grad():
        assert not convolves_fast(x, 4)
        torch.testing.assert_close(conv(x), found, rtol=1e-5, atol=1e-6)
