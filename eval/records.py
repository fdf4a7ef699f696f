"""Files that the evaluation stages hand to each other: `samples.json`, `scores.json`, `gate.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, ValidationError, model_serializer

from eval.vocabulary import Facts
from m4v.core.artifacts import Artifact
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import write_atomic

SAMPLES, SCORES, GATE = "samples.json", "scores.json", "gate.json"
STAND_IN = "stand-in weights, not a result"  # said wherever such a score is shown
SYSTEM = "system:"  # before the name that stands for a checkpoint where another system made the videos


class SampleVideo(FrozenModel):
    """One generated video and everything it came from, beside what the whole set shares.

    `prompt` is what the model was given, `scored_as` what it is scored against where that is another wording (written
    only then). `prompt_index` is the prompt's number: its place in the list unless the set numbers its prompts. `seed`
    is None where another system drew it.
    """

    file: str
    prompt: str
    prompt_index: int
    sample_index: int
    seed: int | None
    facts: Facts
    frames: int
    fps: float
    height: int
    width: int
    sha256: str
    latent: str | None = None
    scored_as: str | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        if data.get("scored_as") is None:
            data.pop("scored_as", None)
        return data

    @property
    def scored_prompt(self) -> str:
        return self.scored_as or self.prompt


class Origin(FrozenModel):
    """Where the videos of another system are from: what it is called, an address or words, the licence's words, and
    what their streams are (`h264 yuv420p`)."""

    system: str
    source: str
    licence: str
    video_codec: str


class SampleSet(FrozenModel):
    """`samples.json`. `videos` are in order of (prompt, sample).

    - counts: samples by prompt number, written where prompts have numbers or counts of their own; otherwise they are
      0, 1, … with `samples_per_prompt` each.
    - origin: of imported videos alone (written only then). Their `checkpoint` is `system:NAME`, `crf` is None, sampler,
      codec and text encoder are unknown.
    """

    schema_version: int = 1
    checkpoint: str
    ema: bool
    sampler: dict[str, JsonValue]
    codec: dict[str, JsonValue]
    text_encoder: dict[str, JsonValue]
    crf: int | None
    prompt_set: str
    seed_rule: str
    base_seed: int
    prompts: int
    samples_per_prompt: int
    videos: tuple[SampleVideo, ...]
    counts: dict[int, int] = Field(default={})
    origin: Origin | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        for name in ("counts", "origin"):
            if not data.get(name):
                data.pop(name, None)
        return data

    @property
    def video_codec(self) -> str:
        """As it stands in a result's identity."""
        return f"h264 yuv420p crf {self.crf}" if self.origin is None else f"{self.origin.video_codec}, as imported"

    def expected(self) -> list[tuple[int, int]]:
        """(prompt number, sample) of every video that the set must hold."""
        counts = self.counts or dict.fromkeys(range(self.prompts), self.samples_per_prompt)
        return [(number, j) for number, count in sorted(counts.items()) for j in range(count)]


class SuiteIdentity(FrozenModel):
    """What a suite's score belongs to, beside the videos.

    - mode, prompt_set: as in `eval.suites.SuiteInputs`; partial: comparable with nothing.
    - videos: how many each dimension reads.
    - environments, weights: digests by name; options: whatever else can move a number, `stand_in` among it.
    """

    name: str
    version: str
    mode: str
    prompt_set: str
    partial: bool
    videos: dict[str, int]
    environments: dict[str, str]
    weights: dict[str, str]
    options: dict[str, JsonValue]

    @property
    def stand_in(self) -> tuple[str, ...]:
        """Dimensions that were measured with other weights than the published ones: their scores are no results."""
        named = self.options.get("stand_in")
        if isinstance(named, list):
            return tuple(str(name) for name in named)
        # Records from before dimensions were named: not to know which are sound is to know of none.
        return tuple(self.videos) if self.weights and self.options.get("published_weights") is False else ()


class Identity(FrozenModel):
    """What a score belongs to. Two results that differ in anything but the model (checkpoint, whether it has
    averaged weights, its own codec and text encoder) stand side by side and are never subtracted."""

    checkpoint: str
    ema: bool
    sampler: dict[str, JsonValue]
    codec: dict[str, JsonValue]
    text_encoder: dict[str, JsonValue]
    video_codec: str
    prompt_set: str
    seed_rule: str
    base_seed: int
    samples_per_prompt: int
    frames: int
    fps: float
    height: int
    width: int
    metrics: dict[str, int]
    metric_config: dict[str, JsonValue]
    suite: SuiteIdentity | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if k != "suite" or v is not None}

    def differences(self, other: Identity) -> list[str]:
        """Fields, the model's own apart, in which two results are not of the same protocol. What is partial, or was
        measured with stand-in weights, is of none."""
        own = {"checkpoint", "ema", "codec", "text_encoder"}
        found = [n for n in type(self).model_fields if n not in own and getattr(self, n) != getattr(other, n)]
        suites = [i.suite for i in (self, other) if i.suite is not None]
        never = ["suite (partial)"] if any(s.partial for s in suites) and "suite" not in found else []
        never += ["suite (stand-in weights)"] if any(s.stand_in for s in suites) else []
        return [*found, *never]

    def apart(self, other: Identity) -> str:
        """Why two results are not to be subtracted, in words; empty where they may be."""
        different = self.differences(other)
        stands_in = self.stand_in or other.stand_in
        return STAND_IN if stands_in else f"{', '.join(different)} differ between the two" if different else ""

    @property
    def system(self) -> str | None:
        """Name of the system whose imported videos were measured; None for a checkpoint."""
        return self.checkpoint.removeprefix(SYSTEM) if self.checkpoint.startswith(SYSTEM) else None

    @property
    def stand_in(self) -> tuple[str, ...]:
        """Metrics whose scores are no results: see `SuiteIdentity.stand_in`."""
        return () if self.suite is None else tuple(f"{self.suite.name}.{name}" for name in self.suite.stand_in)


class MetricScore(FrozenModel):
    """`values` stand in the order of `per_video`; None where the metric does not apply."""

    version: int
    title: str
    unit: str
    description: str
    higher_is_better: bool | None
    chance: float | None
    mean: float | None
    count: int
    values: tuple[float | None, ...]


class VideoScore(FrozenModel):
    file: str
    prompt: str
    prompt_index: int
    sample_index: int
    metrics: dict[str, float | None]
    details: dict[str, dict[str, float | str | None]]


class Figures(FrozenModel):
    """Figures over a suite's dimensions (`vbench.total`), as fractions; None where `missing` names a dimension that
    they need. `failed`: dimensions without a score, and why."""

    figures: dict[str, float | None]
    missing: dict[str, tuple[str, ...]]
    failed: dict[str, str]


class ScoreSet(FrozenModel):
    """`scores.json`. `figures` only of a suite."""

    schema_version: int = 1
    identity: Identity
    metrics: dict[str, MetricScore]
    per_video: tuple[VideoScore, ...]
    figures: Figures | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if k != "figures" or v is not None}


class RuleVerdict(FrozenModel):
    """One gate rule. `interval` is of the mean difference candidate - baseline, paired over prompts."""

    metric: str
    rule: str
    threshold: float
    value: float | None
    baseline: float | None
    difference: float | None
    interval: tuple[float, float] | None
    confidence: float | None
    prompts: int
    passed: bool
    reason: str


class DimensionVerdict(RuleVerdict):
    """One dimension of a `non_regression` rule. `p_value` is of that dimension alone, `adjusted_p` holds for all of the
    rule together; None where there were too few prompts."""

    must_not_fall: bool
    p_value: float | None
    adjusted_p: float | None
    family_wise: float


class GateVerdict(FrozenModel):
    """`gate.json`. The candidate passes when every rule does."""

    schema_version: int = 1
    passed: bool
    candidate: str
    baseline: str | None
    rules: tuple[DimensionVerdict | RuleVerdict, ...]


RecordT = TypeVar("RecordT", bound=FrozenModel)


def write_record(path: Path, record: FrozenModel) -> None:
    """Indented JSON with sorted keys; a NaN cannot be in it, the models refuse one."""
    text = json.dumps(record.canonical(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def read_record(model: type[RecordT], artifact: Artifact, name: str) -> RecordT:
    """Strict: raises DataIntegrityError for a bare NaN, an unknown field or a missing one."""
    where = f"{artifact.kind} {artifact.id[:12]}/{name}"
    try:
        data = json.loads(artifact.path(name).read_text(), parse_constant=_refuse_constant)
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        raise DataIntegrityError(f"{place}: {first['msg']}", where=where) from None
    except ValueError as error:
        raise DataIntegrityError(f"record does not parse: {error}", where=where) from None


def _refuse_constant(token: str) -> float:
    raise ValueError(f"{token} is no number")
