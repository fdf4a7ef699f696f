"""Temporal branches that are called by themselves (Wan's, and those whose frames are shared) against float64 on plain
torch: results and gradients, and on a GPU vectors that torch's own kernels do not take. As `test_gpu_pieces.py`:
anywhere with TRITON_INTERPRET=1."""

import copy
from typing import TypeVar

import pytest
import torch
from fused_models import DEVICE, DTYPE, INTERPRETED, MARKS, poisoned
from torch import Tensor, nn

from m4v.config import ModelConfig
from m4v.kernels import use_kernels
from m4v.model.layout import BatchLayout, Clip, Column
from m4v.model.temporal import MOST_CHANNELS, TemporalBranch
from m4v.wan.config import WanConfig
from m4v.wan.mixer import WanTemporalBranch, clip_layout

pytestmark = MARKS
B = TypeVar("B", bound=nn.Module)
LIMIT = 1e-5 if INTERPRETED else 2e-2
# It hardly moves a softmax: its gradient is a small difference of large sums, in bfloat16.
LIMITS = {} if INTERPRETED else {"to_k.bias": 2 * LIMIT}
# Columns of several stages: of history a frame is one piece, of the last clip several.
COLUMNS = (
    Column(1, (Clip(2, 2, 3), Clip(1, 2, 3), Clip(1, 4, 6))), Column(0, (Clip(1, 2, 3),)),
    Column(2, (Clip(1, 2, 3), Clip(1, 4, 6), Clip(1, 8, 12))),
)  # fmt: skip


def wan(causal: bool, width: int = 48, heads: int = 3) -> WanTemporalBranch:
    return filled(WanTemporalBranch(WanConfig(width=width, heads=heads, text_slots=5, temporal_causal=causal)))


def filled(branch: B) -> B:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
        branch.scale.fill_(0.7)  # type: ignore[operator, union-attr]
    return branch


def taken(branch: nn.Module, x: Tensor, layout: BatchLayout) -> list[Tensor]:
    """The result, and gradients of the rows and of every parameter."""
    leaf = x.detach().requires_grad_()
    out = branch(leaf, layout)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [leaf, *branch.parameters()])]


def held_against_float64(branch: nn.Module, layout: BatchLayout, glue: str, repeats: bool = True) -> None:
    shape = (2, layout.image_tokens, branch.to_q.weight.shape[1])  # type: ignore[union-attr, index]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    own, exact = copy.deepcopy(branch).to(DEVICE, DTYPE), copy.deepcopy(branch).to(DEVICE, DTYPE).double()
    x = x.to(DEVICE, DTYPE)
    with use_kernels(glue=glue), poisoned():  # type: ignore[arg-type]
        found = taken(own, x, layout)
        assert not repeats or all(map(torch.equal, found, taken(own, x, layout)))
    with use_kernels(glue="torch"):
        wanted = taken(exact, x.double(), layout)
    names = ["result", "rows", *(name for name, _ in branch.named_parameters())]
    for name, one, other in zip(names, found, wanted, strict=True):
        assert float((one.double() - other).norm()) <= LIMITS.get(name, LIMIT) * max(1e-6, float(other.norm())), name


@pytest.mark.parametrize("clip", [Clip(1, 2, 3), Clip(3, 2, 3), Clip(21, 3, 5), Clip(65, 1, 2)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_frames_of_a_clip(causal: bool, clip: Clip) -> None:
    held_against_float64(wan(causal), clip_layout(clip, 5), "triton")


def test_pieces_of_a_pyramid() -> None:
    sizes = {"width": 48, "heads": 3, "latent_channels": 4, "text_dim": 8, "pooled_dim": 6, "text_slots": 5}
    branch = filled(TemporalBranch(ModelConfig.model_validate(sizes)))
    held_against_float64(branch, BatchLayout(COLUMNS, 5), "triton")


@pytest.mark.skipif(INTERPRETED, reason="of torch's kernels for CUDA")
@pytest.mark.parametrize("glue", ["torch", "triton"])
def test_vectors_that_torch_has_no_kernel_for(glue: str) -> None:
    clip, branch = Clip(3, 45, 40), wan(True, 128, 2)
    assert clip.height * clip.width * 64 > MOST_CHANNELS
    held_against_float64(branch, clip_layout(clip, 5), glue, repeats=glue == "triton")
