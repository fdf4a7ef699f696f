"""Rotation of channel pairs, whatever memory its gradient comes in."""

import pytest
import torch

from m4v.model.layers import rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_with_exchanged_axes_turns_back(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, 8, dtype=dtype, requires_grad=True)
    turn = torch.polar(torch.ones(5, 4), torch.linspace(0, 6, 20).view(5, 4)).to(dtype.to_complex())
    rotated, grad = rotate(x, turn), torch.randn(2, 5, 8, 3, dtype=dtype).transpose(2, 3)
    (turned_back,) = torch.autograd.grad(rotated, x, grad)
    assert not grad.is_contiguous()
    torch.testing.assert_close(rotate(turned_back, turn), grad, rtol=0, atol=1e-5)
