"""The untrained model learns: one batch of columns is fitted within a few steps."""

import torch

from m4v.config import ModelConfig, ScheduleConfig
from m4v.flow.loss import flow_loss, predict
from m4v.flow.packing import ColumnDraws, pack_column
from m4v.flow.schedule import PyramidSchedule
from m4v.model import build_model


def test_a_batch_can_be_fitted() -> None:
    config = ModelConfig(
        width=64, heads=4, double_blocks=1, single_blocks=2, latent_channels=4, text_dim=8, pooled_dim=6, text_slots=4
    )
    model, schedule = build_model(config, 0), PyramidSchedule(ScheduleConfig())
    shape, generator = (4, 4, 8, 8), torch.Generator().manual_seed(0)
    columns = []
    for stage, unit in ((0, 4), (1, 3), (2, 4)):
        latents = torch.randn(2, *shape, generator=generator)
        keys = [(f"sample {stage} {i}", 0) for i in range(2)]
        columns.append(pack_column(schedule, latents, stage, unit, ColumnDraws.from_keys(0, keys, shape, stage, unit)))
    text = torch.randn(6, 4, 8, generator=generator), torch.ones(6, 4), torch.randn(6, 6, generator=generator)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(30):
        loss = flow_loss(predict(model, columns, *text), columns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0], losses
    assert float(model.single_transformer_blocks[0].temporal.scale.detach()) != 0.0
