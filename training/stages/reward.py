"""Stage `reward`: flow matching on data with a differentiable image-text reward on decoded frames."""

from __future__ import annotations

from pydantic import TypeAdapter

from m4v.codec import open_codec
from m4v.codec.config import CodecConfig
from m4v.core.stage import StageContext
from training.config import RewardConfig
from training.families import Family
from training.families.pyramid import PyramidFamily
from training.objective import Objective
from training.reward.gradient_path import check_gradient_path
from training.reward.objective import RewardObjective
from training.reward.rewards import open_rewards
from training.reward.whole_video import WholeVideoObjective
from training.session import run_training


def run(context: StageContext) -> None:
    """Every rank runs this with codec and scorers of its own; rank 0 writes the checkpoint."""
    config = context.config(RewardConfig)

    def objective(family: Family) -> Objective:
        codec: CodecConfig = TypeAdapter(CodecConfig).validate_python(family.config.codec)
        device = context.resources.device
        folders = context.weights_folders()
        opened = open_codec(codec, folders, device)
        rewards = open_rewards(config.reward.scorers, config.watch.held_out, folders, device)
        check_gradient_path(opened, rewards, device)
        if isinstance(family, PyramidFamily):
            return RewardObjective(config.reward, family.schedule, opened, rewards)
        return WholeVideoObjective(config.reward, family, opened, rewards)

    run_training(context, config, objective)
