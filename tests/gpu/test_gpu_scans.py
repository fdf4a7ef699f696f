"""mamba-ssm's and causal-conv1d's kernels against the definitions in float64, forwards and gradients.

Errors are relative norms. bfloat16 results carry a rounding of 2^-9 and pass one or two bfloat16 operands more
inside, so four of those are allowed; float32 runs through tf32 products (2^-11) in the SSD kernels, where
three follow each other.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.core.errors import ConfigError
from m4v.kernels import kernel_set, use_kernels
from m4v.kernels.scan import causal_conv_silu, selective_scan, ssd_scan
from m4v.kernels.selection import SCAN_VARIABLE
from m4v.model.selective_scan import scan_sequential
from m4v.model.ssd import ssd_sequential

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MAMBA1 = pytest.mark.skipif(
    importlib.util.find_spec("selective_scan_cuda") is None, reason="mamba-ssm's extension for Mamba-1 is not here"
)
LIBRARY = "mamba_ssm"  # whatever `auto` means
BFLOAT16, TF32, FLOOR = 4 * 2**-9, 8 * 2**-11, 0.05


@pytest.fixture(autouse=True)
def library() -> Iterator[None]:
    with use_kernels(scan=LIBRARY):  # type: ignore[arg-type]
        yield


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda")


def error(found: Tensor, exact: Tensor) -> float:
    """Relative to the exact norm; absolute where that is next to nothing (one token decays no state)."""
    return float((found.double() - exact).norm() / exact.norm().clamp(min=FLOOR))


def compare(
    fast: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: dict[str, Tensor], tolerance: float
) -> None:
    """Both on the same values, the exact one in float64; every output and gradient within `tolerance`."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    precise = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    y, z = fast(**leaves), exact(**precise)
    weight = normal(9, *y.shape).to(y.dtype)
    found = torch.autograd.grad(y, list(leaves.values()), weight)
    expected = torch.autograd.grad(z, list(precise.values()), weight.double())
    errors = {"y": error(y, z)} | {k: error(f, e) for k, f, e in zip(leaves, found, expected, strict=True)}
    print(" ".join(f"{name} {value:.1e}" for name, value in errors.items()))
    assert {name: value for name, value in errors.items() if not value < tolerance} == {}


def ssd_inputs(batch: int, length: int, heads: int, dtype: torch.dtype) -> dict[str, Tensor]:
    x, b, c = (normal(i, batch, length, heads, 64).to(dtype) * 0.4 for i in range(3))
    dt = F.softplus(normal(3, batch, length, heads) - 2)
    return {"x": x, "dt": dt, "a": -normal(4, heads).abs() - 0.1, "b": b, "c": c, "skip": normal(5, heads)}


def ssd_exact(cuts: list[int]) -> Callable[..., Tensor]:
    """The recurrence over sequences that end at `cuts`."""

    def run(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        parts = [
            ssd_sequential(x[:, i:j], dt[:, i:j], a, b[:, i:j], c[:, i:j])
            for i, j in zip([0, *cuts[:-1]], cuts, strict=True)
        ]
        return torch.cat(parts, dim=1) + skip[:, None] * x

    return run


def owners(batch: int, cuts: list[int]) -> Tensor | None:
    if len(cuts) == 1:
        return None
    column = torch.arange(len(cuts)).repeat_interleave(torch.tensor(cuts).diff(prepend=torch.tensor([0])))
    return column.to("cuda", torch.int32).expand(batch, -1).contiguous()


@pytest.mark.parametrize(
    ("batch", "heads", "cuts"),
    [(1, 30, [1]), (2, 3, [97]), (2, 30, [257]), (1, 2, [130, 131, 389]), (2, 5, [33, 290])],
    ids=str,
)
def test_ssd(batch: int, heads: int, cuts: list[int]) -> None:
    """Odd lengths, one token, several columns that end inside chunks and do not leak."""
    inputs, column = ssd_inputs(batch, cuts[-1], heads, torch.bfloat16), owners(batch, cuts)
    compare(lambda **i: ssd_scan(**i, column=column), ssd_exact(cuts), inputs, BFLOAT16)


def test_ssd_in_float32() -> None:
    inputs, column = ssd_inputs(1, 181, 2, torch.float32), owners(1, [60, 181])
    compare(lambda **i: ssd_scan(**i, column=column), ssd_exact([60, 181]), inputs, TF32)


def test_ssd_steps_of_zero_pass_the_state_on() -> None:
    """Pads: with dt = 0 a token neither adds nor decays, and reads what is there."""
    inputs = ssd_inputs(1, 65, 2, torch.bfloat16)
    dt = inputs["dt"].clone()
    dt[:, 20:40] = 0
    y = ssd_scan(**(inputs | {"dt": dt}), column=None)
    keep = torch.cat([torch.arange(20), torch.arange(40, 65)]).cuda()
    short = {k: v[:, keep].contiguous() if k in ("x", "dt", "b", "c") else v for k, v in inputs.items()}
    assert error(y[:, keep], ssd_scan(**short, column=None).double()) < BFLOAT16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("length", "channels", "width"), [(1, 8, 4), (3, 1920, 4), (301, 1920, 4), (129, 24, 3)])
def test_convolution(dtype: torch.dtype, length: int, channels: int, width: int) -> None:
    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (width - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=channels)).transpose(1, 2)

    inputs = {"x": normal(0, 2, length, channels), "weight": normal(1, channels, width), "bias": normal(2, channels)}
    tolerance = 2 * 2**-9 if dtype == torch.bfloat16 else 1e-6
    compare(causal_conv_silu, exact, {k: v.to(dtype) for k, v in inputs.items()}, tolerance)


@MAMBA1
@pytest.mark.parametrize(("length", "channels", "groups"), [(1, 16, 1), (173, 64, 4), (260, 240, 15)])
def test_selective_scan(length: int, channels: int, groups: int) -> None:
    inputs = {
        "x": normal(0, 2, length, channels),
        "dt": F.softplus(normal(1, 2, length, channels) - 2),
        "a": -normal(2, channels, 16).abs() - 0.1,
        "b": normal(3, 2, length, groups, 16),
        "c": normal(4, 2, length, groups, 16),
        "skip": normal(5, channels),
    }

    def exact(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        return scan_sequential(x, dt, a, b, c)[0] + skip * x

    compare(selective_scan, exact, inputs, 1e-5)


@MAMBA1
def test_selective_scan_refuses_gradients_in_deterministic_mode() -> None:
    inputs = [normal(0, 1, 4, 16), normal(1, 1, 4, 16).abs(), -normal(2, 16, 16).abs()]
    state = [normal(3, 1, 4, 1, 16), normal(4, 1, 4, 1, 16), normal(5, 16)]
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ConfigError, match="not deterministic"):
            selective_scan(*inputs, *state)
        with torch.no_grad():
            assert selective_scan(*inputs, *state).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_package_itself_still_imports() -> None:
    """The stand-in that keeps its `__init__` from running is gone after loading."""
    assert kernel_set("cuda")["scan"].startswith("mamba-ssm ")
    assert "mamba_ssm" not in sys.modules or hasattr(sys.modules["mamba_ssm"], "__version__")


DETERMINISTIC = """
import hashlib, torch
from m4v.kernels.scan import causal_conv_silu, ssd_scan
torch.use_deterministic_algorithms(True, warn_only=True)
generator = torch.Generator("cuda").manual_seed(0)
normal = lambda *s: torch.randn(*s, generator=generator, device="cuda")
x, b, c = (normal(2, 1300, 30, 64).bfloat16().requires_grad_() for _ in range(3))
dt, a = normal(2, 1300, 30).exp().mul(0.1).requires_grad_(), normal(30).abs().neg().requires_grad_()
weight, bias = normal(1920, 4).requires_grad_(), normal(1920).requires_grad_()
values = causal_conv_silu(x.flatten(2), weight, bias).unflatten(-1, (30, 64))
y = ssd_scan(values, dt, a, b, c, torch.ones(30, device="cuda"), None)
leaves = [x, b, c, dt, a, weight, bias]
sha = hashlib.sha256()
for u in [y, *torch.autograd.grad(y, leaves, normal(*y.shape).bfloat16())]:
    sha.update(u.detach().float().cpu().numpy().tobytes())
print(sha.hexdigest())
"""


def test_deterministic_mode_gives_the_same_bits_in_every_process() -> None:
    repository = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(repository), os.environ.get("PYTHONPATH")]))
    seen = set()
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DETERMINISTIC],
            env=os.environ | {"PYTHONPATH": path, SCAN_VARIABLE: LIBRARY},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        seen.add(process.stdout.strip())
    assert len(seen) == 1
