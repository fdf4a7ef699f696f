"""The flow-matching loss over the noisy clips of a batch of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from m4v.flow.packing import PackedColumn


class VelocityModel(Protocol):
    """A model that predicts one velocity field per column (see `m4v.model.M4VTransformer.forward`)."""

    def __call__(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int],
    ) -> list[Tensor]: ...


def predict(
    model: VelocityModel, columns: Sequence[PackedColumn], text: Tensor, text_mask: Tensor, pooled: Tensor
) -> list[Tensor]:
    """Predicted velocity per column; row `i * C + c` of the text belongs to sample i of column c."""
    timesteps = torch.stack([column.timestep for column in columns], dim=1).flatten()
    return model(
        [column.clips for column in columns], timesteps, text, text_mask, pooled, [column.stage for column in columns]
    )


def sample_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample (b,) over its noisy clip, in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def flow_loss(predictions: Sequence[Tensor], columns: Sequence[PackedColumn]) -> Tensor:
    """Mean over all samples of all columns, unweighted."""
    losses = [sample_losses(p, c.target) for p, c in zip(predictions, columns, strict=True)]
    return torch.cat(losses).mean()
