"""Products of the same rows by several layers: the layers' results to the bit, gradients against float64, the same bits
whatever is kept and when it runs again. As `test_gpu_glue_operators.py`: anywhere with TRITON_INTERPRET=1."""

import pytest
import torch
from fused_models import DEVICE, INTERPRETED, MARKS, poisoned
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.model.checkpointing import run_block
from m4v.model.layers import Linear
from m4v.model.products import products

pytestmark = MARKS
WIDTHS = (32, 40, 24)  # products on CUDA cores want multiples of 8 in 16 bits


ODD = (32, 30, 5)  # those that an aligned product adds columns to


class Layers(nn.Module):
    """Some products of the same rows, one of them without a bias. `ODD` ones are aligned; nobody reads what is behind
    their columns, and its gradient is zero."""

    def __init__(self, dtype: torch.dtype, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.aligned = widths == ODD
        layers = [Linear(16, width, bias=number != 1) for number, width in enumerate(widths)]
        self.layers = nn.ModuleList(layers).to(DEVICE, dtype)

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Linear] = list(self.layers)  # type: ignore[arg-type]
        made = products(x, layers, self.aligned)
        assert [u.shape[-1] % 8 for u in made] == [0] * len(made)
        return torch.cat([u[..., : len(v.weight)].float().sin() for u, v in zip(made, layers, strict=True)], dim=-1)


@pytest.mark.parametrize("rows", [1, 129, 300])
@pytest.mark.parametrize("width", [8, 200])
def test_sums_of_columns(rows: int, width: int) -> None:
    from m4v.kernels.column_sums import column_sums

    given = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(DEVICE)
    given = given if INTERPRETED else given.bfloat16()
    with poisoned():
        found = column_sums(given)
        assert torch.equal(found, column_sums(given))
        assert torch.equal(found, column_sums(given.t().contiguous().t()))  # other strides
    assert found.dtype == torch.float32
    assert float((found - given.double().sum(0)).abs().max()) < 1e-4 * rows**0.5


@pytest.mark.parametrize("widths", [WIDTHS, ODD], ids=str)
@pytest.mark.parametrize("kind", ["float32", "float32 under autocast", "bfloat16"])
def test_results_and_gradients(kind: str, widths: tuple[int, ...]) -> None:
    block = Layers(torch.bfloat16 if kind == "bfloat16" else torch.float32, widths)
    x = torch.randn(2, 67, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x = x.float() if kind == "float32" else x.bfloat16()
    found: dict[str, list[Tensor]] = {}
    for mode in ("none", "selective", "block", "again"):
        leaf = x.clone().requires_grad_()
        with poisoned(), torch.autocast(DEVICE, torch.bfloat16, enabled=kind.endswith("autocast")):
            out = run_block(block, "none" if mode == "again" else mode, leaf)  # type: ignore[arg-type]
        with poisoned():
            found[mode] = [out, *torch.autograd.grad(out.square().sum(), [leaf, *block.parameters()])]
        if mode == "none":
            with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=kind.endswith("autocast")):
                assert torch.equal(out, block(x))
    for mode in ("selective", "block", "again"):
        assert all(map(torch.equal, found["none"], found[mode])), mode
    exact = Layers(torch.float64, widths)
    exact.load_state_dict({name: value.double() for name, value in block.state_dict().items()})
    leaf = x.double().requires_grad_()
    parts = torch.cat([layer(leaf) for layer in exact.layers], dim=-1).sin()
    wanted = torch.autograd.grad(parts.square().sum(), [leaf, *exact.parameters()])
    assert [u.shape for u in found["none"][1:]] == [x.shape, *(p.shape for p in block.parameters())]
    assert [u.dtype for u in found["none"][1:]] == [x.dtype, *(p.dtype for p in block.parameters())]
    most = 1e-5 if kind == "float32" else 2e-2
    for one, other in zip(found["none"][1:], wanted, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < most


@pytest.mark.skipif(INTERPRETED, reason="without CUDA the activation is no part of the product")
@pytest.mark.parametrize("rows", [1, 67])
def test_a_product_with_its_activation(rows: int) -> None:
    from m4v.model.fused import _activated

    torch.manual_seed(rows)
    layer = Linear(48, 192).to(DEVICE, torch.bfloat16)
    x = torch.randn(2, rows, 48, device=DEVICE, dtype=torch.bfloat16) * 2
    exact = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh")
    with torch.no_grad(), poisoned():
        fused = _activated(x, layer)
        assert torch.equal(fused, _activated(x, layer))
    apart = _activated(x, layer)
    errors = [float((u.double() - exact).norm() / exact.norm()) for u in (fused, apart)]
    assert fused.dtype == torch.bfloat16
    assert fused.shape == apart.shape
    assert errors[0] < 1.1 * errors[1] < 1e-2


@pytest.mark.skipif(DEVICE != "cuda", reason="elsewhere there is one form")
@pytest.mark.parametrize("shape", [(1, 70, 64), (2, 70, 64), (3, 1030, 1920)], ids=str)
def test_samples_that_lie_apart_are_not_copied(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer, rows = Linear(shape[2], 72).to(DEVICE, torch.bfloat16), torch.randn(shape).to(DEVICE, torch.bfloat16)[:, 6:]
    with torch.no_grad(), poisoned():
        again = products(rows, [layer])[0]  # with room for cuBLAS, which stays
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = products(rows, [layer])[0]
        taken = torch.cuda.max_memory_allocated() - before
        wanted = rows.double() @ layer.weight.double().t() + layer.bias.double()
        assert found.is_contiguous()
        assert float((found - wanted).norm() / wanted.norm()) < 4e-3
        assert torch.equal(found, again)
    assert taken < found.numel() * 2 + rows.numel() * 2  # the result, and no copy of the rows
