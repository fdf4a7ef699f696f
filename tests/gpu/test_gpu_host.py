"""A pack of training never makes the program wait for the GPU, which would idle while the next kernels are sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from m4v.config import ModelConfig, Recompute
from m4v.flow.packing import PackedColumn, history_shape
from m4v.model import build_model
from training.objective import FlowObjective
from training.order import StepSize

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MODEL = ModelConfig(
    width=256, heads=4, double_blocks=1, single_blocks=2, text_dim=64, pooled_dim=64, text_slots=16, mlp_ratio=2
)
COLUMNS = [(0, 4), (1, 3), (2, 4)]
SIDE, ROWS = 32, 2


def batch(held_out: bool) -> Any:
    """A pack of two samples in each column; with `held_out` the second sample of the last column does not train."""
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ROWS, *shape, generator=g, device="cuda")

    columns = []
    for stage, unit in COLUMNS:
        clips = [normal(16, n, SIDE >> (2 - s), SIDE >> (2 - s)) for s, n in [*history_shape(stage, unit), (stage, 1)]]
        level = torch.full((ROWS,), 0.5, device="cuda")
        columns.append(PackedColumn(stage, clips, 1000 * level, torch.ones_like(clips[-1]), level, clips[-1]))
    rows = ROWS * len(COLUMNS)
    trained = [list(range(ROWS)) if c < 2 or not held_out else [0] for c in range(len(COLUMNS))]
    return SimpleNamespace(
        columns=columns, text=normal(rows // ROWS, 16, 64).flatten(0, 1), pack=SimpleNamespace(columns=COLUMNS),
        text_mask=torch.ones(rows, 16, device="cuda"), pooled=normal(rows // ROWS, 64).flatten(0, 1),
        trained=trained.__getitem__,
    )  # fmt: skip


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("recompute", ["none", "block", "selective"])
def test_forward_and_backward_of_packs_do_not_wait(recompute: Recompute, held_out: bool) -> None:
    model, given, objective = build_model(MODEL, 3).cuda(), batch(held_out), FlowObjective(1000)
    model.recompute, model.recompute_blocks = recompute, 2
    size: Any = StepSize(samples=6, tokens=1, high=1)

    def pack() -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            terms = objective(model, given, size)  # type: ignore[arg-type]
        terms.loss.backward()
        return terms.after_backward()

    pack()  # tables are made and kernels compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = pack()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    total, count = terms.logged["loss_high"]
    assert count == (1 if held_out else ROWS)
    assert 0 < total < terms.flow
