"""Scores of clips that a reward stage does not train on: which clips, what is told of them, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from training_helpers import clips, write_dataset

from m4v.core.shard_index import INDEX, read_index
from training.config import OrderConfig, RewardConfig
from training.reward.held_out import HeldOutScore, held_out_levels, held_out_scores
from training.reward.probe_samples import scored_packs
from training.reward.watch_config import ProbeConfig, WatchConfig
from training.split import held_out_samples
from training.template import HIGH

ORDER = OrderConfig(frames=17, tokens_per_pack=80, packs=1, image_every=0, high_units=2, held_out=400_000)


def told(before: list[float], after: list[float]) -> HeldOutScore:
    row = held_out_levels(["score_a"], [[x] for x in before], [[x] for x in after])
    (found,) = held_out_scores([{"step": 0}, {"step": 1, **row}, {"step": 2}])
    return found


def test_a_rise_of_every_clip_is_significant_and_noise_is_not() -> None:
    drawn = np.random.default_rng(0)
    start = drawn.normal(0.1, 0.5, 24)
    risen = told(list(start), list(start + 0.02 + drawn.normal(0, 0.01, 24)))
    assert risen.rise == pytest.approx(0.02, abs=0.01)
    assert risen.significant, "paired: the spread between clips is much larger than the rise"
    assert risen.interval[0] < risen.rise < risen.interval[1]
    same = told(list(start), list(start + drawn.normal(0, 0.01, 24)))
    assert not same.significant
    fallen = told(list(start), list(start - 0.02))
    assert fallen.significant
    assert fallen.rise < 0


def test_a_few_clips_are_never_significant() -> None:
    assert not told([0.1], [0.2]).significant
    assert not told([0.1] * 5, [0.2, 0.3, 0.2, 0.3, 0.2]).significant
    assert told([0.1] * 6, [0.2, 0.3, 0.2, 0.3, 0.2, 0.3]).significant


def test_clips_without_a_score_are_left_out_and_none_at_all_says_nothing() -> None:
    found = told([0.1, math.nan, 0.3], [0.2, 0.9, 0.4])
    assert found.clips == 2
    assert found.rise == pytest.approx(0.1)
    assert held_out_levels(["score_a"], [[math.nan]], [[math.nan]]) == {"probe_clips": 0}
    assert held_out_scores([{"step": 0, "probe_clips": 0}]) == ()
    assert held_out_scores([{"step": 0}]) == ()


def test_only_held_out_clips_are_scored_at_latents_that_the_reward_looks_at(tmp_path: Path) -> None:
    write_dataset(tmp_path, clips(videos=9, images=4))
    index = read_index(tmp_path / INDEX)
    held_out = held_out_samples(index, ORDER.held_out)
    packs = scored_packs(index, ORDER, 1, 64, 3)
    assert packs
    for pack in packs:
        ((stage, unit),) = pack.columns
        assert (stage, unit) == (HIGH, pack.stream.t), "the last latent alone"
        assert len({draw.number for draw in pack.draws}) == len(pack.draws) == pack.stream.batch == 3
        assert set(pack.samples) <= held_out
    assert len({pack.samples[0] for pack in packs}) == len(packs)
    assert len(scored_packs(index, ORDER, 1, 1, 3)) == 1
    units = {pack.columns[0].unit for pack in scored_packs(index, ORDER, 8, 64, 1)}
    assert len(units) > 1, "latents go round with the clips"
    assert scored_packs(index, ORDER.model_copy(update={"held_out": 0}), 1, 64, 3) == []


def test_scored_clips_need_a_held_out_share_and_change_no_recorded_key() -> None:
    with pytest.raises(ValidationError, match=r"set order\.held_out"):
        RewardConfig(name="reward", steps=4, watch=WatchConfig(probe=ProbeConfig(scored=2)))
    assert not {"scored", "draws"} & set(ProbeConfig(draws=7).key_config())
    assert ProbeConfig(scored=2).key_config()["draws"] == 4
