"""Nodes that sample and score the checkpoint before the reward stage as the trained one is: same prompts and seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dataprep.encode_config import weights_of as packaged_weights
from eval.config import EvaluateConfig, score_name
from eval.prompts import SEED_STRIDE, PromptList
from m4v.core.config import FrozenModel
from m4v.scores.config import ConseConfig, ScorerConfig
from pipelines import stages
from pipelines.imported import Inputs, imported

if TYPE_CHECKING:
    from pipelines.builder import Builder

BEFORE, AFTER = "before_reward", "after_reward"


class BeforeRewardEntry(FrozenModel):
    """What the checkpoints before and after the reward stage are compared on, by its scorers and those held out of it.

    - prompts: which are sampled from both, with the same seeds; none: those of `generate`, which the trained model has
      been given anyway. Intervals need five of them.
    - samples_per_prompt: videos of each; none: as many as `generate` makes.
    """

    prompts: PromptList | None = None
    samples_per_prompt: int | None = Field(default=None, ge=1, lt=SEED_STRIDE)


def add_before_reward(build: Builder) -> Inputs:
    """Where the recipe asks for it: videos of both checkpoints and their scores, which are inputs of the report. What
    the recipe samples or measures anyway is not done twice."""
    recipe, entry = build.recipe, build.recipe.evaluation.before_reward
    if recipe.reward is None or entry is None:
        return {}
    given = {name: value for name, value in dict(entry).items() if value is not None}
    sampled = recipe.generate.model_copy(update=given)
    measured = with_scorers(recipe.evaluate, recipe.reward.scorers)
    weights = packaged_weights(recipe.encode)
    (reward,) = (node for node in build.nodes if node.spec is stages.REWARD)
    found: Inputs = {}
    for name, checkpoint in ((BEFORE, reward.inputs["checkpoint"]), (AFTER, (reward.id, "checkpoint"))):
        samples, scores = "generate.trained", "evaluate.trained"
        if name == BEFORE or sampled != recipe.generate:
            inputs = {"checkpoint": checkpoint, **imported(recipe.encode.codec, recipe.encode.text_encoder)}
            samples = build.add(f"generate.{name}", stages.GENERATE, sampled, inputs, weights=weights)
        if samples != "generate.trained" or measured != recipe.evaluate:
            inputs = {"samples": (samples, "samples"), **imported(*measured.scorers)}
            scores = build.add(f"evaluate.{name}", stages.EVALUATE, measured, inputs)
        found[f"scores_{name}"] = (scores, "scores")
    return found


def with_scorers(config: EvaluateConfig, scorers: tuple[ScorerConfig, ...]) -> EvaluateConfig:
    """`config` with those of `scorers` that it does not measure yet; of two with the same weights the first."""
    found: dict[str, ScorerConfig] = {}
    for scorer in (*config.scorers, *scorers):
        if not _is_measured(config, scorer):
            found.setdefault(score_name(scorer), scorer)
    return config.model_copy(update={"scorers": tuple(found.values())})


def _is_measured(config: EvaluateConfig, scorer: ScorerConfig) -> bool:
    return isinstance(scorer, ConseConfig) and scorer == config.conse and "conse.alignment" in config.metrics
