"""Products of several layers and of a row in two parts, where no Triton kernel is needed (tests/gpu has the rest)."""

import torch
from torch import Tensor

from m4v.model.fused import _product_of_parts
from m4v.model.layers import Linear
from m4v.model.products import _sample_by_sample, products


def layers_of(*widths: int, bias: bool) -> list[Linear]:
    torch.manual_seed(0)
    return [Linear(16, width, bias=bias).double() for width in widths]


def test_aligned_products_have_columns_of_zeros_behind_their_own() -> None:
    x, layers = torch.randn(2, 7, 16, dtype=torch.float64), layers_of(30, 5, 32, bias=True)
    with torch.no_grad():
        found, plain = products(x, layers, aligned=True), products(x, layers)
    assert [u.shape[-1] for u in found] == [32, 8, 32]
    for one, other, layer in zip(found, plain, layers, strict=True):
        width = len(layer.weight)
        assert other.shape[-1] == width
        torch.testing.assert_close(one[..., :width], other)
        assert not one[..., width:].any()


def test_what_becomes_of_the_columns_behind_reaches_no_gradient() -> None:
    x, layers = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True), layers_of(30, 5, 32, bias=False)
    leaves: list[Tensor] = [x, *(layer.weight for layer in layers)]
    grads = []
    for aligned in (True, False):
        made = products(x, layers, aligned=aligned)
        read = [u[..., : len(layer.weight)] for u, layer in zip(made, layers, strict=True)]
        grads.append(torch.autograd.grad(sum(u.sin().sum() for u in read), leaves))  # type: ignore[arg-type]
    for one, other, leaf in zip(*grads, leaves, strict=True):
        assert one.shape == leaf.shape
        torch.testing.assert_close(one, other)


def test_a_product_of_rows_in_two_parts_is_that_of_the_whole_row() -> None:
    torch.manual_seed(0)
    layer, mixed, hidden = Linear(16 + 40, 16).double(), torch.randn(3, 5, 16).double(), torch.randn(3, 9, 40).double()
    with torch.no_grad():
        found = _product_of_parts(mixed, hidden[:, :5], layer)
        torch.testing.assert_close(found, layer(torch.cat([mixed, hidden[:, :5]], dim=-1)))


def test_samples_that_lie_apart_have_the_products_of_those_that_do_not() -> None:
    (layer,) = layers_of(24, bias=True)
    rows = torch.randn(2, 9, 16, dtype=torch.float64)[:, 2:]
    with torch.no_grad():
        found = _sample_by_sample(rows, layer)
        assert found.is_contiguous()
        torch.testing.assert_close(found, layer(rows.contiguous()))
