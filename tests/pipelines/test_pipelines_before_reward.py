"""The checkpoint before the reward stage, sampled and scored as the one after it: which nodes that adds."""

import pytest

from eval.config import EvaluateConfig, GenerateConfig
from m4v.core.errors import ConfigError
from m4v.scores.clip_config import ClipConfig, HpsConfig
from m4v.scores.config import ConseConfig
from pipelines.before_reward import with_scorers
from pipelines.graph import build_graph
from pipelines.recipe import load_recipe
from pipelines.spec import StageNode

OWN = "evaluation.before_reward={}"


def nodes_of(*overrides: str) -> dict[str, StageNode]:
    return {node.id: node for node in build_graph(load_recipe("micro", overrides))}


def test_without_the_section_nothing_is_added_and_no_recorded_recipe_changes() -> None:
    assert not [name for name in nodes_of() if name.endswith(("before_reward", "after_reward"))]
    assert load_recipe("micro").evaluation.canonical() == {"vbench": None}
    assert "scorers" not in EvaluateConfig().canonical()


def test_the_trained_model_s_videos_serve_where_prompts_and_scorers_are_the_recipe_s_own() -> None:
    plain, nodes = nodes_of(), nodes_of(OWN)
    assert set(nodes) - set(plain) == {"generate.before_reward", "evaluate.before_reward"}
    made, trained = nodes["generate.before_reward"], nodes["generate.trained"]
    assert made.config == trained.config
    assert (made.seed, made.weights) == (trained.seed, trained.weights)
    assert made.inputs["checkpoint"] == nodes["reward"].inputs["checkpoint"]
    assert nodes["evaluate.before_reward"].config == nodes["evaluate.trained"].config
    report = nodes["report"].inputs
    assert report["scores_before_reward"] == ("evaluate.before_reward", "scores")
    assert report["scores_after_reward"] == ("evaluate.trained", "scores")
    assert "scores_before_reward" not in plain["report"].inputs


def test_prompts_of_its_own_are_sampled_from_both() -> None:
    nodes = nodes_of('evaluation.before_reward={"prompts": "shapes-8", "samples_per_prompt": 2}')
    before, after = nodes["generate.before_reward"], nodes["generate.after_reward"]
    assert before.config == after.config
    assert isinstance(before.config, GenerateConfig)
    assert (len(before.config.prompts), before.config.samples_per_prompt) == (8, 2)
    assert after.inputs["checkpoint"] == ("reward", "checkpoint")
    assert nodes["evaluate.after_reward"].inputs["samples"] == ("generate.after_reward", "samples")


def test_scorers_of_the_reward_and_those_held_out_are_measured_once_each() -> None:
    hps, clip, other = HpsConfig(weights="hps"), ClipConfig(weights="clip"), ClipConfig(weights="other")
    found = with_scorers(EvaluateConfig(), (hps, clip, ConseConfig(), clip, other))
    assert found.scorers == (hps, clip, other), "ConSE is a metric already"
    assert with_scorers(EvaluateConfig(metrics=("local.flicker",)), (ConseConfig(),)).scorers == (ConseConfig(),)


def test_their_weights_are_inputs_of_what_measures_them() -> None:
    nodes = {node.id: node for node in build_graph(load_recipe("paper-d1"))}
    for name in ("evaluate.before_reward", "evaluate.after_reward"):
        assert {"weights.hpsv2", "weights.clip"} <= set(nodes[name].inputs)
    assert set(nodes["evaluate.trained"].inputs) == {"samples"}


def test_a_recipe_without_a_reward_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="no reward stage"):
        load_recipe("micro", ["reward=null", OWN])


def test_a_model_of_whole_clips_may_have_a_reward_stage_over_whole_clips() -> None:
    order = '"order": {"frames": 81, "min_frames": 81, "time_stride": 4, "columns": COLUMNS, "image_every": 0}'
    reward = 'reward={"name": "reward", "steps": 4, "save_every": 2, ' + order + "}"
    nodes = {n.id: n for n in build_graph(load_recipe("m4v-wan", [reward.replace("COLUMNS", "[]"), OWN]))}
    assert nodes["generate.trained"].inputs["checkpoint"] == ("reward", "checkpoint")
    assert nodes["generate.before_reward"].inputs["checkpoint"] == ("train.720p", "checkpoint")
    with pytest.raises(ConfigError, match=r"reward: a Wan model trains on whole clips: set order\.columns to \[\]"):
        load_recipe("m4v-wan", [reward.replace("COLUMNS", "[0, 1, 1, 2]")])
