"""What a plan says of ranks that share forwards, and what it refuses."""

import pytest
from pydantic import ValidationError

from m4v.core.errors import ConfigError
from m4v.wan.config import wan_preset
from training.config import EngineConfig, OrderConfig, RewardConfig, TrainConfig
from training.preflight import Setup, check_fits, estimate, gpu_of
from training.preflight.anchors import GATHERS_S, TRAINING, UPDATE_S
from training.preflight.sequence import largest_part, largest_share
from training.preflight.work import PackWork
from training.ranks import check_ranks, leads, pack_rank
from training.samples import SampleGroup

LONG = (SampleGroup("clips", "video", 61, 90, 160, 1), SampleGroup("clips", "image", 1, 90, 160, 1))  # 241 frames, 720p


def stage(packs: int = 8, frames: int = 241, **engine: object) -> TrainConfig:
    settings = {"zero_stage": 3, "dtype": "bfloat16", "checkpointing": "block", **engine}
    order = OrderConfig(
        frames=frames, min_frames=5, time_stride=4, columns=(), tokens_per_pack=100_000, packs=packs, image_every=8
    )
    return TrainConfig(name="long", steps=10, order=order, engine=EngineConfig.model_validate(settings))


def setup(ranks: int = 8, model: str = "14B", gpu: str = "h100-80gb", **changes: object) -> Setup:
    return Setup("train", wan_preset(model), stage(**changes), LONG, ranks, gpu_of(gpu))


def test_recorded_settings_and_keys_stay_what_they_were() -> None:
    assert "sequence_parallel" not in EngineConfig().canonical()
    assert EngineConfig(sequence_parallel=2).canonical()["sequence_parallel"] == 2
    assert EngineConfig.model_validate(EngineConfig(sequence_parallel=2).canonical()).sequence_parallel == 2


def test_ranks_of_a_group_have_the_same_packs_and_one_of_them_speaks() -> None:
    engine = EngineConfig(sequence_parallel=2)
    assert [pack_rank(engine, rank, 6) for rank in range(6)] == [(0, 3), (0, 3), (1, 3), (1, 3), (2, 3), (2, 3)]
    assert [leads(engine, rank) for rank in range(4)] == [True, False, True, False]
    assert pack_rank(EngineConfig(fixed_order=True), 3, 4) == (0, 1)
    check_ranks(stage(packs=2, sequence_parallel=4), 8)


@pytest.mark.parametrize(
    ("ranks", "changes", "words"),
    [
        (6, {"sequence_parallel": 4}, "6 ranks do not split into groups of 4"),
        (8, {"sequence_parallel": 2, "packs": 6}, "4 groups of 2 ranks do not divide the packs"),
        (64, {"sequence_parallel": 64}, "attention of 40 heads"),
        (32, {"sequence_parallel": 32, "frames": 121}, "clips of 31 latent frames"),
    ],
)
def test_what_cannot_be_shared_is_refused(ranks: int, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        check_fits(setup(ranks, **changes))
    assert refused.value.next_step


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="fixed_order"):
        EngineConfig(sequence_parallel=2, fixed_order=True)
    with pytest.raises(ValidationError, match="sequence_parallel is not for reward"):
        RewardConfig(name="r", steps=1, engine=EngineConfig(sequence_parallel=2))


def test_activations_and_time_are_those_of_the_largest_part() -> None:
    whole, eighth = estimate(setup(gpu="h200")), estimate(setup(gpu="h200", sequence_parallel=8))
    assert whole is not None
    assert eighth is not None
    assert (whole.packs_per_rank, eighth.packs_per_rank) == (1, 8)
    assert 7 < whole.memory.activations / eighth.memory.activations < 61 / 8
    assert whole.memory._replace(activations=0, buffers=0) == eighth.memory._replace(activations=0, buffers=0)
    assert whole.step_seconds is not None
    # 8 frames of 61 in place of 7.6, and what a pack costs whatever its size, eight times.
    fixed = TRAINING["own"].pack_s + GATHERS_S
    of_size = whole.step_seconds - fixed - UPDATE_S
    assert eighth.step_seconds == pytest.approx(8 * (fixed + of_size * 8 / 61) + UPDATE_S, rel=0.01)
    assert any("8 ranks share each forward" in line for line in eighth.assumptions)


def test_images_are_shared_by_samples() -> None:
    images = PackWork(16 * 3600, 16 * 512, 0, 1.0, frames=1, samples=16)
    assert largest_share(images, 8) == 1 / 8
    assert largest_part(images, 8).visual == 2 * 3600
    assert largest_share(images._replace(samples=1), 8) == 1.0


def test_a_clip_that_one_gpu_does_not_hold_is_advised_to_be_shared() -> None:
    with pytest.raises(ConfigError, match="does not fit") as refused:
        check_fits(setup(ranks=32, packs=32))
    assert "engine.sequence_parallel: " in str(refused.value.next_step)
    shared = int(str(refused.value.next_step).split("sequence_parallel: ")[1].split()[0])
    assert check_fits(setup(ranks=32, packs=32, sequence_parallel=shared)) is not None
