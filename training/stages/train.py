"""Stage `train`: one rung of the ladder, from a dataset version and a checkpoint to a checkpoint."""

from __future__ import annotations

from m4v.core.stage import StageContext
from training.config import TrainConfig
from training.objective import FlowObjective
from training.session import run_training


def run(context: StageContext) -> None:
    """Every rank runs this; rank 0 writes the checkpoint."""
    run_training(context, context.config(TrainConfig), lambda family: FlowObjective(family.train_steps, family.names))
