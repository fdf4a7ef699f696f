"""A reward stage that is open to hacking: paused by its watch, told to finish with the last good save, killed."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from training_bench import Bench, checkpoint, make_bench
from training_helpers import TEXT
from training_nursery import Nursery

from m4v.config import ModelConfig, SamplerConfig
from m4v.core.errors import DataIntegrityError, ExitClass
from m4v.core.stage import StageRequest, read_exits
from m4v.core.storage import Storage
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, RewardConfig, RewardTermConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.reward.held_out import held_out_scores
from training.reward.start_answers import RECORD, TENSORS, StartAnswers, read_start, write_start
from training.reward.watch import FRAME_NAMES, PROBE_NAMES
from training.reward.watch_config import ProbeConfig, WatchConfig

HACKS = Path(__file__).parent / "training_hacks.py"
TINY = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
PROBE = ProbeConfig(
    samples=2, prompts=2, seeds=2, latents=1,
    sampler=SamplerConfig(steps_first=(1, 1, 1), steps_later=(1, 1, 1), guidance_first=0, guidance_later=0),
    scored=3, draws=2,
)  # fmt: skip
CONFIG = RewardConfig(  # the reward is for plain red, and so strong that the model gives up its data
    name="reward",
    steps=28,
    order=OrderConfig(frames=17, tokens_per_pack=80, packs=1, image_every=0, high_units=2, held_out=300_000),
    optimizer=OptimizerConfig(lr=0.02, warmup_steps=6, warmup_from=0.0),
    engine=EngineConfig(zero_stage=1),
    text_drop=0.0,
    save_every=4,
    reward=RewardTermConfig(weight=30.0),
    watch=WatchConfig(probe=PROBE),
)
FINISH = CONFIG.model_copy(update={"watch": CONFIG.watch.model_copy(update={"on_alarm": "finish"})})
OFF = dict.fromkeys(("drift", "data_loss", "saturation", "contrast", "freezing", "grid_energy", "similarity"), 0.0)
SEEDS_ALONE = CONFIG.model_copy(update={"watch": WatchConfig(probe=PROBE, seed_similarity=0.2, **OFF)})


@dataclass(frozen=True)
class Works:
    """Attempts of one stage that is paused first and told to finish then, of one whose videos alone are watched over
    seeds, and of one that was killed before it was paused."""

    paused: Path
    finished: Path
    seeds: Path
    resumed: Path


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Works:
    made = make_bench(tmp_path_factory.mktemp("watched"), InitConfig(model=TINY, text_encoder=TEXT), CONFIG)
    bench = dataclasses.replace(made, nursery=nursery, script=HACKS)
    killed, resumed = (_written(bench, "killed", CONFIG, attempt) for attempt in range(2))
    bench.start("killed", 1, [killed], fault="commit:4").wait()
    works = [
        _written(bench, "stage", CONFIG, 0), _written(bench, "stage", FINISH, 1),
        _written(bench, "seeds", SEEDS_ALONE, 0), resumed,
    ]  # fmt: skip
    bench.start(".", 1, works).wait()
    return Works(*works)


def _written(bench: Bench, name: str, config: RewardConfig, attempt: int) -> Path:
    work = bench.write(name, config, 1, attempt)
    request = StageRequest.model_validate_json((work / "request.json").read_text())
    reward = request.model_copy(update={"stage": "reward", "function": "training.stages.reward:run"})
    (work / "request.json").write_text(reward.model_dump_json())
    return work


def alarm_of(work: Path) -> dict[str, Any]:
    saves = [json.loads(line) for line in (work / "saves.jsonl").read_text().splitlines()]
    (alarm,) = [row for row in saves if row["event"] == "watch_alarm"]
    return {name: alarm[name] for name in ("step", "good", "reasons")}


def names(alarm: dict[str, Any]) -> set[str]:
    return {reason.split()[0] for reason in alarm["reasons"]}


def test_a_reward_open_to_hacking_pauses_the_stage_which_says_the_good_save(works: Works) -> None:
    (left,) = read_exits(works.paused)
    assert left.exit_class == ExitClass.NEEDS_HUMAN
    assert "seems to be hacked" in str(left)
    alarm = alarm_of(works.paused)
    assert f"the save of step {alarm['good']} is good" in str(left)
    assert names(alarm) >= {"velocity_drift", "probe_loss_rise"}


def test_videos_of_one_prompt_that_grow_alike_over_seeds_pause_it_too(works: Works) -> None:
    (left,) = read_exits(works.seeds)
    assert left.exit_class == ExitClass.NEEDS_HUMAN
    assert names(alarm_of(works.seeds)) == {"seed_similarity_rise"}


def test_a_paused_stage_finishes_with_its_good_save_under_the_same_key(works: Works) -> None:
    assert CONFIG.key_config() == FINISH.key_config()
    folder = checkpoint(works.finished)
    state = ExposureState.model_validate_json((folder / TRAINING_STATE).read_text())
    alarm = json.loads((works.finished / "result.json").read_text())["metrics"]["watch_alarm"]
    assert state.cursor == alarm["good"] < CONFIG.steps
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(state.cursor))
    assert {*FRAME_NAMES, "reward", "score_redness", "clipped"} <= set(rows[0])
    assert {row["step"] for row in rows if PROBE_NAMES[0] in row} == {n - 1 for n in range(4, state.cursor + 1, 4)}


def test_a_killed_stage_measures_and_decides_to_the_bit_as_one_that_was_not(works: Works) -> None:
    whole, resumed = (
        [json.loads(line) for line in (w / "metrics.jsonl").read_text().splitlines()]
        for w in (works.paused, works.resumed)
    )
    assert whole == resumed
    assert sum("velocity_drift" in row for row in whole) > 1
    assert alarm_of(works.paused) == alarm_of(works.resumed)


def test_the_reward_is_told_of_clips_that_the_stage_does_not_train_on(works: Works) -> None:
    rows = [json.loads(line) for line in (works.paused / "metrics.jsonl").read_text().splitlines()]
    saves = [row for row in rows if row["step"] % CONFIG.save_every == CONFIG.save_every - 1]
    (last,) = held_out_scores(rows)
    assert (last.name, last.clips) == ("score_redness", saves[-1]["probe_clips"])
    assert 1 <= last.clips <= PROBE.scored
    assert last.after == saves[-1]["probe_score_redness"]
    assert last.interval[0] <= last.rise <= last.interval[1]
    assert last.rise > 0.01, "so strong a reward reaches them too"
    assert len({row["probe_score_redness_at_start"] for row in saves}) == 1, "always held against the start model"


def test_answers_of_the_start_model_that_are_gone_or_damaged_are_refused(tmp_path: Path) -> None:
    state = Storage(str(tmp_path))
    kept = StartAnswers([[torch.rand(2, 3), torch.rand(1)], [torch.rand(2, 3), torch.rand(1)]], [0.1], [[0.2], [0.3]])
    with pytest.raises(DataIntegrityError, match="not there"):
        read_start(state, 2, 1, 2)
    write_start(state, kept)
    found = read_start(state, 2, 1, 2)
    assert (found.likeness, found.scores) == (kept.likeness, kept.scores)
    for one, other in zip(found.velocities, kept.velocities, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(DataIntegrityError, match="of 2 samples, 1 prompts and 2 scored clips, not 3"):
        read_start(state, 3, 1, 2)
    older = load(state.read_bytes(TENSORS))  # as stages wrote them before clips were scored
    del older["scores"]
    data = save(older)
    state.write_bytes(TENSORS, data)
    state.write_bytes(RECORD, json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode())
    assert read_start(state, 2, 1).likeness == kept.likeness
    with pytest.raises(DataIntegrityError, match="and 0 scored clips, not"):
        read_start(state, 2, 1, 2)
    state.write_bytes(TENSORS, state.read_bytes(TENSORS)[:-1])
    with pytest.raises(DataIntegrityError, match="differ from their digest"):
        read_start(state, 2, 1, 2)
