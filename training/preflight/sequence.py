"""What ranks that share a forward have of a pack, and settings that cannot be."""

from __future__ import annotations

import math

from m4v.core.errors import ConfigError
from m4v.family import AnyModel
from m4v.parallel.check import check_sequence
from m4v.wan.config import WanConfig
from training.config import RewardConfig, TrainConfig
from training.preflight.work import PackWork, StageWork
from training.ranks import check_ranks


def largest_share(pack: PackWork, ranks: int) -> float:
    """The share of the rank that has most: whole frames of a clip, or whole samples where the clips are too short."""
    units = pack.frames if pack.frames >= ranks else pack.samples
    return 1.0 if ranks == 1 else math.ceil(units / ranks) / max(1, units)


def largest_part(pack: PackWork, ranks: int) -> PackWork:
    """What that rank has of a pack. Text counts whole: one rank owns it, and another scans its closing copy."""
    if ranks == 1:
        return pack
    share = largest_share(pack, ranks)
    return pack._replace(
        visual=math.ceil(pack.visual * share), temporal=math.ceil(pack.temporal * share),
        forward_flops=pack.forward_flops * share,
    )  # fmt: skip


def check_shared(model: AnyModel, train: TrainConfig, ranks: int, work: StageWork, stage: str) -> None:
    """Raise ConfigError when the stage's ranks cannot share its forwards as `engine.sequence_parallel` says."""
    shared = train.engine.sequence_parallel
    if shared == 1:
        return
    if isinstance(model, WanConfig) and train.engine.backend == "fsdp2":
        # FSDP2 sums what has a gradient on a rank; that every rank has one of everything was not shown for Wan.
        raise ConfigError(
            f"stage {stage}: forwards of Wan are not shared on FSDP2", value=shared, where="engine.sequence_parallel",
            next_step="leave out engine.backend",
        )  # fmt: skip
    try:
        check_sequence(shared, model.heads, work.longest)
        check_ranks(train, ranks)
    except ConfigError as error:
        raise ConfigError(
            f"stage {stage}: {error.what}", value=error.value, where=error.where, next_step=error.next_step
        ) from None


def sizes_to_share(model: AnyModel, train: TrainConfig, ranks: int, work: StageWork | None) -> list[int]:
    """Sizes above its own of the groups that a stage's ranks could share its forwards in."""
    if work is None or train.engine.fixed_order or isinstance(train, RewardConfig):
        return []
    most = min(ranks, model.heads, work.longest)
    return [
        size
        for size in range(train.engine.sequence_parallel + 1, most + 1)
        if ranks % size == 0 and train.order.packs % (ranks // size) == 0
    ]
