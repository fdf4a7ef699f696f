"""Our Mamba-2 scan in Triton against the recurrence in float64: outputs and all gradients.

Without a GPU the same tests run in Triton's interpreter, smaller: `TRITON_INTERPRET=1 pytest tests/gpu/test_gpu_ssd.py`
(it knows no bfloat16 products, so float32 and once float16 stand in, and no races). Errors are relative norms.
16-bit results may be off by four of their roundings, since one or two operands inside are rounded too; float32
products run as three of tf32 each, and sums cancel.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.core.errors import ConfigError
from m4v.kernels import use_kernels
from m4v.kernels.scan import ssd_scan
from m4v.kernels.ssd_configs import CONFIGS
from m4v.model.ssd import ssd_sequential

CUDA, INTERPRETED = torch.cuda.is_available(), os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CUDA and not INTERPRETED, reason="no CUDA device")]
on_gpu = pytest.mark.skipif(INTERPRETED or not CUDA, reason="needs the compiled kernels")
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPE = torch.float32 if INTERPRETED else torch.bfloat16
HALF = torch.float16 if INTERPRETED else torch.bfloat16
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4 * 2**-9, torch.float16: 4 * 2**-11}
FLOOR = 0.05  # norms below are compared absolutely: one token decays no state
BATCH, HEADS = 2, 3
NUMBERS = (0, 2) if INTERPRETED else range(len(CONFIGS))
NAMES = ("y", "x", "dt", "a", "b", "c", "skip", "bias")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def inputs_of(length: int, dtype: torch.dtype, size: int = 64, state: int = 64, heads: int = HEADS) -> list[Tensor]:
    """x, dt before its softplus, a, b, c, skip, bias."""
    x, b, c = (normal(i, BATCH, length, heads, n).to(dtype) * 0.4 for i, n in enumerate((size, state, state)))
    dt, a, skip, bias = normal(3, BATCH, length, heads) - 2, normal(4, heads), normal(5, heads), normal(6, heads)
    return [x, dt, -a.abs() - 0.1, b, c, skip, bias * 0.3]


def owners(cuts: list[int]) -> Tensor | None:
    """The number of the sequence, of those that end at `cuts`, for each token."""
    if len(cuts) == 1:
        return None
    column = torch.arange(len(cuts)).repeat_interleave(torch.tensor(cuts).diff(prepend=torch.tensor([0])))
    return column.to(DEVICE, torch.int32).expand(BATCH, -1)


def exact(leaves: list[Tensor], cuts: list[int], softplus: bool) -> Tensor:
    x, dt, a, b, c, skip, bias = leaves
    dt = F.softplus(dt + bias) if softplus else dt + 0 * bias
    spans = zip([0, *cuts[:-1]], cuts, strict=True)
    parts = [ssd_sequential(x[:, i:j], dt[:, i:j], a, b[:, i:j], c[:, i:j]) for i, j in spans]
    return torch.cat(parts, dim=1) + skip[:, None] * x


def ours(leaves: list[Tensor], cuts: list[int], softplus: bool, config: int | None = None) -> Tensor:
    from m4v.kernels.ssd_operators import ssd

    x, dt, a, b, c, skip, bias = leaves
    return ssd(x, dt, a, b, c, skip, owners(cuts), bias if softplus else None, softplus, config)


def with_gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """y and the gradients of what it depends on, zero for the rest."""
    weight = normal(9, *y.shape).to(HALF).to(y.dtype)
    found = torch.autograd.grad(y, leaves, weight, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(u) if f is None else f for f, u in zip(found, leaves, strict=True))]


def results(inputs: list[Tensor], cuts: list[int], softplus: bool, config: int | None = None) -> list[Tensor]:
    leaves = [u.detach().requires_grad_() for u in inputs]
    return with_gradients(ours(leaves, cuts, softplus, config), leaves)


def check(inputs: list[Tensor], cuts: list[int], softplus: bool, config: int | None = None) -> None:
    if not softplus:
        inputs = [inputs[0], F.softplus(inputs[1]), *inputs[2:]]
    found = results(inputs, cuts, softplus, config)
    precise = [u.detach().double().requires_grad_() for u in inputs]
    expected = with_gradients(exact(precise, cuts, softplus), precise)
    assert [f.dtype for f in found] == [inputs[0].dtype, *(u.dtype for u in inputs)]
    errors = {
        name: float((f.double() - e).norm() / e.norm().clamp(min=FLOOR))
        for name, f, e in zip(NAMES, found, expected, strict=True)
    }
    print(" ".join(f"{name} {value:.1e}" for name, value in errors.items()))
    limit = TOLERANCE[inputs[0].dtype]
    assert {name: value for name, value in errors.items() if not value < limit} == {}


@pytest.fixture
def poisoned() -> Iterator[None]:
    """What torch allocates is full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("config", NUMBERS)
@pytest.mark.parametrize("cuts", [[1], [5], [63], [65], [130], [257], [64, 128, 130], [1, 40, 41, 200]], ids=str)
def test_odd_lengths_and_columns(cuts: list[int], config: int) -> None:
    """Every value is written: nothing of the poison is left."""
    check(inputs_of(cuts[-1], TYPE), cuts, len(cuts) == 1, config)


@pytest.mark.parametrize(("size", "state"), [(16, 16), (32, 128), (128, 32), (128, 128), (16, 64)])
def test_sizes_of_heads_and_states(size: int, state: int) -> None:
    check(inputs_of(70, TYPE, size, state), [30, 70], True)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_types(dtype: torch.dtype) -> None:
    check(inputs_of(70, dtype, heads=1), [30, 70], True)


def test_rows_of_a_wider_projection() -> None:
    """x, b and c are slices; the gradient of y comes transposed."""
    x, dt, a, b, c, skip, bias = inputs_of(70, TYPE)
    wide = torch.cat([u.flatten(2) for u in (x, b, c)], dim=2)
    apart = [u.unflatten(2, (HEADS, 64)) for u in wide.chunk(3, dim=2)]
    assert not apart[0].is_contiguous()
    leaves = [u.detach().requires_grad_() for u in (apart[0], dt, a, *apart[1:], skip, bias)]
    weight = normal(9, 70, 64, BATCH, HEADS).to(TYPE).permute(2, 0, 3, 1)
    y = ours(leaves, [70], True)
    found = [y, *torch.autograd.grad(y, leaves, weight)]
    leaves = [u.detach().contiguous().requires_grad_() for u in leaves]
    y = ours(leaves, [70], True)
    expected = [y, *torch.autograd.grad(y, leaves, weight.contiguous())]
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_steps_of_zero_pass_the_state_on() -> None:
    """Pads: with dt = 0 a token neither adds nor decays, and reads what is there."""
    x, dt, a, b, c, skip, bias = inputs_of(90, TYPE)
    dt = F.softplus(dt)
    dt[:, 20:70] = 0
    keep = torch.cat([torch.arange(20), torch.arange(70, 90)]).to(DEVICE)
    y = ours([x, dt, a, b, c, skip, bias], [90], False)[:, keep]
    short = ours([x[:, keep], dt[:, keep], a, b[:, keep], c[:, keep], skip, bias], [40], False)
    assert float((y - short).float().norm() / short.float().norm()) < TOLERANCE[TYPE]


def test_strong_decays_overflow_nowhere() -> None:
    x, dt, a, b, c, skip, bias = inputs_of(140, TYPE)
    check([x, dt + 8, a * 40, b, c, skip, bias], [140], True)


def test_wrong_sizes_and_types_are_refused() -> None:
    inputs = inputs_of(4, TYPE, size=24)
    with pytest.raises(ValueError, match="no SSD kernel for x"):
        ours(inputs, [4], True)
    inputs = inputs_of(4, TYPE)
    with pytest.raises(ValueError, match="no SSD kernel for x"):
        ours([inputs[0].double(), *inputs[1:]], [4], True)


def test_operators_keep_torchs_rules() -> None:
    """Schema, shapes for tracing, gradient registration, and tracing of forward and backward."""
    from m4v.kernels import ssd_operators

    x, dt, a, b, c, skip, bias = (u.requires_grad_() for u in inputs_of(5, torch.float32, 16, 16, 1))
    column = torch.zeros(BATCH, 5, dtype=torch.int32, device=DEVICE)
    torch.library.opcheck(ssd_operators._forward.library, (x, dt, a, b, c, skip, column, bias, True, 0))
    torch.library.opcheck(ssd_operators._forward.library, (x, dt, a, b, c, skip, None, None, False, 0))


@pytest.mark.parametrize("length", [70 if INTERPRETED else 15_488])
def test_repetition_gives_the_same_bits(length: int) -> None:
    """A race would show: every run must agree with the first."""
    inputs, cuts = inputs_of(length, TYPE, heads=1 if INTERPRETED else 30), [length // 3, length]
    first = results(inputs, cuts, True)
    for _ in range(1 if INTERPRETED else 20):
        assert all(torch.equal(f, e) for f, e in zip(results(inputs, cuts, True), first, strict=True))


@on_gpu
@pytest.mark.parametrize("config", NUMBERS)
@pytest.mark.parametrize("length", [3_712, 15_488])
def test_as_mamba_ssm_at_real_size(length: int, config: int) -> None:
    from m4v.kernels.libraries import ssd_kernel

    try:
        ssd_kernel()
    except ConfigError as reason:
        pytest.skip(reason.message)
    inputs, cuts = inputs_of(length, TYPE, heads=30), [length // 3 + 5, length]
    inputs[1], column = F.softplus(inputs[1]), owners(cuts)
    assert column is not None

    def library() -> list[Tensor]:
        leaves = [u.detach().requires_grad_() for u in inputs]
        x, dt, a, b, c, skip, _ = leaves
        with use_kernels(scan="mamba_ssm"):
            return with_gradients(ssd_scan(x, dt, a, b, c, skip, column.contiguous()), leaves)

    pairs = zip(NAMES, results(inputs, cuts, False, config), library(), strict=True)
    errors = {name: float((f - e).float().norm() / e.float().norm().clamp(min=FLOOR)) for name, f, e in pairs}
    print(" ".join(f"{name} {value:.1e}" for name, value in errors.items()))
    assert {name: value for name, value in errors.items() if not value < 2 * TOLERANCE[TYPE]} == {}


@on_gpu
def test_offsets_past_two_to_the_31() -> None:
    """Rows so far apart that their elements need int64 offsets; 5 GB."""
    x, dt, a, b, c, skip, bias = inputs_of(300, TYPE)
    stride = (2**31 // 299 + 64) // 16 * 16  # aligned as without it: the same binary, so the same bits
    assert 299 * stride > 2**31
    wide = torch.empty(300 * stride, dtype=TYPE, device=DEVICE)
    far = wide.as_strided((1, 300, HEADS, 64), (0, stride, 64, 1))
    far.copy_(x[:1])
    inputs = [x[:1], *(u[:1] for u in (dt,)), a, b[:1], c[:1], skip, bias]
    weight = normal(9, 1, 300, HEADS, 64).to(TYPE)
    found = []
    for first in (x[:1], far):
        leaves = [u.detach().requires_grad_() for u in (first, *inputs[1:])]
        y = ours(leaves, [300], True)
        found.append([y, *torch.autograd.grad(y, leaves, weight)])
    assert all(torch.equal(f, e) for f, e in zip(*found, strict=True))


@on_gpu
def test_compiled_without_breaks_and_captured() -> None:
    """torch.compile sees one opaque operator; a CUDA graph of it replays on new values."""
    inputs = inputs_of(300, TYPE)

    def twice(*leaves: Tensor) -> Tensor:
        return ours(list(leaves), [300], True) * 2

    assert torch.equal(torch.compile(twice, fullgraph=True, dynamic=False)(*inputs), twice(*inputs))
    graph, other = torch.cuda.CUDAGraph(), inputs_of(301, TYPE)[0][:, 1:]
    with torch.cuda.graph(graph):
        y = twice(*inputs)
    inputs[0].copy_(other)
    graph.replay()
    assert torch.equal(y, twice(*inputs))


@on_gpu
def test_the_choice_triton_takes_these_kernels() -> None:
    x, dt, a, b, c, skip, bias = inputs_of(130, TYPE)
    dt, column = F.softplus(dt), owners([30, 130])
    with use_kernels(scan="triton"):
        y = ssd_scan(x, dt, a, b, c, skip, column)
    assert torch.equal(y, ours([x, dt, a, b, c, skip, bias], [30, 130], False))


BITS = """
import hashlib, torch
from m4v.kernels.ssd_operators import ssd
normal = lambda *s: torch.randn(*s, generator=generator, device="cuda")
generator = torch.Generator("cuda").manual_seed(0)
x, b, c = (normal(2, 1300, 30, 64).bfloat16().requires_grad_() for _ in range(3))
dt, a = normal(2, 1300, 30).exp().mul(0.1).requires_grad_(), normal(30).abs().neg().requires_grad_()
y = ssd(x, dt, a, b, c, torch.ones(30, device="cuda"))
sha = hashlib.sha256()
for u in [y, *torch.autograd.grad(y, [x, b, c, dt, a], normal(*y.shape).bfloat16())]:
    sha.update(u.detach().float().cpu().numpy().tobytes())
print(sha.hexdigest())
"""


@on_gpu
def test_every_process_gives_the_same_bits() -> None:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    seen = set()
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", BITS], env=os.environ | {"PYTHONPATH": path},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        seen.add(process.stdout.strip())
    assert len(seen) == 1
