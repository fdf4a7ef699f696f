"""A reward stage whose watch raises an alarm: paused first, then told to finish with the last good save."""

import dataclasses
import json
from pathlib import Path

import pytest
from training_bench import Bench, checkpoint, make_bench
from training_helpers import TEXT
from training_nursery import Nursery

from m4v.config import ModelConfig
from m4v.core.errors import ExitClass
from m4v.core.stage import StageRequest, read_exits
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, RewardConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.reward.watch import FRAME_NAMES
from training.reward.watch_config import WatchConfig

TINY = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
CONFIG = RewardConfig(  # few steps give the frames more colour, and next to none is allowed
    name="reward",
    steps=28,
    order=OrderConfig(frames=17, tokens_per_pack=80, packs=1, image_every=0, high_units=2),
    optimizer=OptimizerConfig(lr=0.02, warmup_steps=6, warmup_from=0.0),
    engine=EngineConfig(zero_stage=1),
    text_drop=0.0,
    save_every=4,
    watch=WatchConfig(saturation=1e-3, data_loss=0, contrast=0, freezing=0, grid_energy=0, similarity=0),
)
FINISH = CONFIG.model_copy(update={"watch": CONFIG.watch.model_copy(update={"on_alarm": "finish"})})


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> list[Path]:
    made = make_bench(tmp_path_factory.mktemp("watched"), InitConfig(model=TINY, text_encoder=TEXT), CONFIG)
    bench = dataclasses.replace(made, nursery=nursery)
    works = [_written(bench, config, attempt) for attempt, config in enumerate((CONFIG, FINISH))]
    bench.start(".", 1, works).wait()
    return works


def _written(bench: Bench, config: RewardConfig, attempt: int) -> Path:
    work = bench.write("stage", config, 1, attempt)
    request = StageRequest.model_validate_json((work / "request.json").read_text())
    reward = request.model_copy(update={"stage": "reward", "function": "training.stages.reward:run"})
    (work / "request.json").write_text(reward.model_dump_json())
    return work


def test_an_alarm_pauses_the_stage_and_says_which_save_is_good(works: list[Path]) -> None:
    (left,) = read_exits(works[0])
    assert left.exit_class == ExitClass.NEEDS_HUMAN
    assert "seems to be hacked" in str(left)
    saves = [json.loads(line) for line in (works[0] / "saves.jsonl").read_text().splitlines()]
    (alarm,) = [row for row in saves if row["event"] == "watch_alarm"]
    assert f"the save of step {alarm['good']} is good" in str(left)
    assert alarm["reasons"][0].startswith("frame_saturation is ")


def test_a_paused_stage_finishes_with_its_good_save_under_the_same_key(works: list[Path]) -> None:
    assert CONFIG.key_config() == FINISH.key_config()
    folder = checkpoint(works[1])
    state = ExposureState.model_validate_json((folder / TRAINING_STATE).read_text())
    alarm = json.loads((works[1] / "result.json").read_text())["metrics"]["watch_alarm"]
    assert state.cursor == alarm["good"] < CONFIG.steps
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(state.cursor))
    assert {*FRAME_NAMES, "reward", "score_conse", "clipped"} <= set(rows[0])
