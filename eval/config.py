"""Configs of the evaluation stages; torch-free."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from eval.prompts import SEED_STRIDE, Prompt, PromptList, numbers
from m4v.config import Dtype, VideoConfig
from m4v.core.config import FrozenModel
from m4v.scores.config import ConseConfig, ScorerConfig

METRICS = (
    "local.flicker",
    "local.motion",
    "local.motion_direction",
    "local.sharpness",
    "local.saturation",
    "local.colour_follow",
    "local.motion_follow",
    "conse.alignment",
)
ASKED_METRICS = ("local.shape_follow",)  # taken where a recipe names them: recorded keys hold the others


class GenerateConfig(VideoConfig):
    """What is sampled: every prompt x sample index, each video from a seed of its own.

    - ema: take the averaged weights when the checkpoint has them.
    - dtype: of the transformer while sampling.
    """

    prompts: PromptList
    samples_per_prompt: int = Field(default=1, ge=1, lt=SEED_STRIDE)
    base_seed: int = Field(default=0, ge=0)
    ema: bool = True
    dtype: Dtype = "float32"
    keep_latents: bool = False

    @cached_property
    def by_number(self) -> dict[int, Prompt]:
        """The prompts by what seeds and file names count."""
        return dict(zip(numbers(self.prompts), self.prompts, strict=True))


class EvaluateConfig(FrozenModel):
    """Which metrics are taken. `conse_frames`: frames of a clip, evenly spaced, that ConSE scores; `conse`: how
    it sees them. `scorers`: other image-text scores, of the same frames; each is a metric `score.NAME`,
    NAME being that of its weights."""

    metrics: tuple[str, ...] = METRICS
    conse_frames: int = Field(default=4, ge=1)
    conse: ConseConfig = ConseConfig()
    scorers: tuple[ScorerConfig, ...] = ()

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Scorers came later: recorded configs keep their ids.
        return {name: value for name, value in handler(self).items() if name != "scorers" or value}

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = (*METRICS, *ASKED_METRICS)
        for name in self.metrics:
            if name not in known:
                raise ValueError(f"no metric is called {name!r}; known: {', '.join(known)}")
        if len(set(self.metrics)) != len(self.metrics) or not self.metrics:
            raise ValueError("metrics must be named once each, and at least one")
        names = [score_name(scorer) for scorer in self.scorers]
        if len(set(names)) != len(names):
            raise ValueError("scorers must be of different weights")
        return self


class Minimum(FrozenModel):
    """The mean must be at least `value`."""

    rule: Literal["minimum"]
    metric: str
    value: float


class Maximum(FrozenModel):
    """The mean must be at most `value`."""

    rule: Literal["maximum"]
    metric: str
    value: float


class BetterThanBaseline(FrozenModel):
    """The mean must be better than the baseline's by at least `by`. With `significant`, the lower end of
    the paired bootstrap interval over prompts must also reach `by`."""

    rule: Literal["better_than_baseline"]
    metric: str
    by: float = Field(default=0.0, ge=0)
    significant: bool = False


class NotWorseThanBaseline(FrozenModel):
    """The mean may be worse than the baseline's by at most `margin`. With `significant`, it is refused only
    when the whole interval lies beyond the margin."""

    rule: Literal["not_worse_than_baseline"]
    metric: str
    margin: float = Field(default=0.0, ge=0)
    significant: bool = False


class NonRegression(FrozenModel):
    """No dimension may be significantly worse than the baseline's (paired bootstrap over prompts).

    - metrics: the dimensions; none: every metric that has a better direction.
    - margin, margins: by how much a dimension may be worse, in general and by name.
    - must_not_fall: dimensions that may not be worse at all, whatever the margins; not being measured refuses too.
    - family_wise: chance that any of them refuses an equal (Holm over the dimensions).
    """

    rule: Literal["non_regression"] = "non_regression"
    metrics: tuple[str, ...] = ()
    margin: float = Field(default=0.0, ge=0)
    margins: dict[str, Annotated[float, Field(ge=0)]] = {}
    must_not_fall: tuple[str, ...] = ()
    family_wise: float = Field(default=0.025, gt=0, le=0.5)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := sorted(set(self.margins) & set(self.must_not_fall)):
            raise ValueError(f"{both[0]!r} must not fall and has a margin: choose one")
        return self


GateRule = Annotated[
    Minimum | Maximum | BetterThanBaseline | NotWorseThanBaseline | NonRegression, Field(discriminator="rule")
]


def named_metrics(rule: GateRule) -> tuple[str, ...]:
    """What a rule names; of `non_regression` without any, nothing."""
    return (*rule.must_not_fall, *rule.metrics, *rule.margins) if isinstance(rule, NonRegression) else (rule.metric,)


class GateConfig(FrozenModel):
    """All rules must hold. `confidence` is of the two-sided bootstrap interval over prompts."""

    rules: tuple[GateRule, ...] = Field(min_length=1)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


def score_name(scorer: ScorerConfig) -> str:
    """Name of the metric that an image-text score is beside the local ones."""
    return f"score.{getattr(scorer, 'weights', scorer.kind)}"


def weights_of(config: EvaluateConfig) -> dict[str, str]:
    """Packaged models the metrics read (asset name to sha256), for the stage key."""
    conse = config.conse.packaged() if "conse.alignment" in config.metrics else {}
    return conse | {name: digest for scorer in config.scorers for name, digest in scorer.packaged().items()}
