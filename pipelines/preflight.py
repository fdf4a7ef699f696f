"""Estimates of the training stages of a plan, corrected by what earlier runs of the recipe measured.

JSON of `m4v plan --json`, key `preflight`: {node id: estimate}, the fields of `training.preflight.Estimate` (bytes,
seconds, operations), with `refusal` and `advice` (words or null).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dataprep.encode_config import EncodeConfig
from dataprep.sources.config import SourceConfig
from m4v.codec.config import CodecConfig
from m4v.codec.shape import SPATIAL, latent_frames
from m4v.config import ModelConfig
from m4v.core.errors import ConfigError
from m4v.family import AnyModel
from m4v.wan.config import WanConfig
from pipelines.ledger import Ledger, RunRow
from pipelines.plan import Plan, PlanStatus, PlanStep
from pipelines.recipe import Profile, Recipe
from pipelines.spec import StageNode
from training.config import InitConfig, RewardConfig, TrainConfig
from training.preflight import Estimate, Setup, advice, check_fits, estimate, gpu_of
from training.preflight.anchors import Kernels
from training.samples import SampleGroup

_STEP_SECONDS, _PEAK = "step_seconds_median", "gpu_peak_bytes"


class Corrections(NamedTuple):
    """Measured over told; None: nothing was measured."""

    time: float | None
    memory: float | None


@dataclass(frozen=True)
class Preflight:
    """One training stage: its estimate, why it is refused (None: it fits), and a setting that would be faster."""

    estimate: Estimate
    refusal: ConfigError | None = None
    advice: str | None = None
    has_history: bool = False  # the node ran before, so the plan knows its time better

    def to_json(self) -> dict[str, Any]:
        refusal = None if self.refusal is None else str(self.refusal)
        return {**self.estimate.to_json(), "refusal": refusal, "advice": self.advice}


def preflight(recipe: Recipe, nodes: Sequence[StageNode], plan: Plan, ledger: Ledger) -> dict[str, Preflight]:
    """Estimates of the training stages that `plan` expects to run, in its order."""
    by_id = {node.id: node for node in nodes}
    waiting = [by_id[step.node_id] for step in plan.steps if step.status is not PlanStatus.HIT]
    training = [node for node in waiting if isinstance(node.config, TrainConfig)]
    if not training:
        return {}
    names = [node.id for node in nodes if isinstance(node.config, TrainConfig)]
    known = ledger.latest_runs(recipe.name, names)
    runs = {name: known.get(name) for name in names}
    found: dict[str, Preflight] = {}
    for node in training:
        plain = _setup(recipe, node, by_id)
        if plain is None:
            continue
        time, memory = _corrections(recipe, node, by_id, runs)
        setup = replace(plain, correction=time, memory_correction=memory)
        made = estimate(setup)
        if made is not None:
            found[node.id] = Preflight(made, _refusal(setup), advice(setup), runs[node.id] is not None)
    return found


def _refusal(setup: Setup) -> ConfigError | None:
    try:
        check_fits(setup)
    except ConfigError as error:
        return error
    return None


def refuse(found: Mapping[str, Preflight]) -> None:
    """Raise the ConfigError of the first stage that its GPUs do not hold."""
    for each in found.values():
        if each.refusal is not None:
            raise each.refusal


def with_estimates(plan: Plan, found: Mapping[str, Preflight]) -> Plan:
    """The plan with times of the training stages that the ledger has no history of."""
    return replace(plan, steps=tuple(_estimated(step, found.get(step.node_id)) for step in plan.steps))


def _estimated(step: PlanStep, found: Preflight | None) -> PlanStep:
    if found is None or found.has_history or found.estimate.gpu_hours is None:
        return step
    hours = found.estimate.hours or 0.0
    return replace(step, estimate_s=hours * 3600, size_bytes=step.size_bytes or found.estimate.checkpoint_bytes)


def _setup(recipe: Recipe, node: StageNode, by_id: Mapping[str, StageNode]) -> Setup | None:
    """None where the graph does not tell model or sizes: a checkpoint or dataset that another pipeline made."""
    assert isinstance(node.config, TrainConfig)
    model = _model_behind(node, by_id)
    groups = _groups_behind(node, by_id)
    if model is None or not groups:
        return None
    profile, resources = recipe.active_profile, node.resources
    gpu = None if resources.device == "cpu" or profile.gpu is None else gpu_of(profile.gpu)
    codec = _codec_behind(node, by_id) if isinstance(node.config, RewardConfig) else None
    return Setup(node.id, model, node.config, groups, resources.ranks, gpu, codec=codec, kernels=kernels_of(profile))


def kernels_of(profile: Profile) -> Kernels:
    """What the profile's GPUs run on: what it says of its Slurm nodes, else what the environment chooses."""
    return Kernels.named(profile.slurm_config.kernels) if profile.launcher == "slurm" else Kernels.chosen()


def _model_behind(node: StageNode, by_id: Mapping[str, StageNode]) -> AnyModel | None:
    """Model of the checkpoint that a stage starts from: of the nearest stage upstream whose config has one."""
    source = node.inputs.get("checkpoint")
    while source is not None:
        upstream = by_id[source[0]]
        model = getattr(upstream.config, "model", None)
        if isinstance(model, ModelConfig | WanConfig):
            return model
        source = upstream.inputs.get("checkpoint")
    return None


def _codec_behind(node: StageNode, by_id: Mapping[str, StageNode]) -> CodecConfig | None:
    """Codec of the checkpoint that a stage starts from: of the initial model."""
    source = node.inputs.get("checkpoint")
    while source is not None:
        upstream = by_id[source[0]]
        if isinstance(upstream.config, InitConfig):
            return upstream.config.codec
        source = upstream.inputs.get("checkpoint")
    return None


def _groups_behind(node: StageNode, by_id: Mapping[str, StageNode]) -> tuple[SampleGroup, ...]:
    """Sizes that the dataset may hold, of every source: those of the buckets it is encoded to."""
    source = node.inputs.get("dataset")
    encode = by_id[source[0]] if source is not None else None
    if encode is None or not isinstance(encode.config, EncodeConfig):
        return ()
    buckets = encode.config.buckets
    names = [by_id[n].config for n, _ in encode.inputs.values()]
    sources = [config.name for config in names if isinstance(config, SourceConfig)]
    latents = [latent_frames(frames, encode.config.codec.time_stride) for frames in buckets.frames]
    found = []
    for name in sources:
        found += [
            SampleGroup(name, "video", t, h // SPATIAL, w // SPATIAL, 1) for t in latents for h, w in buckets.sizes
        ]
        found += [SampleGroup(name, "image", 1, h // SPATIAL, w // SPATIAL, 1)
                  for h, w in buckets.image_sizes or buckets.sizes]  # fmt: skip
    return tuple(found)


def _corrections(
    recipe: Recipe, node: StageNode, by_id: Mapping[str, StageNode], runs: Mapping[str, RunRow | None]
) -> Corrections:
    """Measured over told, of the node's latest run, else of the latest run of another training stage of the recipe."""
    others = [node.id, *(each for each in runs if each != node.id)]
    for each in others:
        run = runs[each]
        found = None if run is None else _measured(recipe, by_id[each], by_id, run)
        if found is not None:
            return found
    return Corrections(None, None)


def _measured(recipe: Recipe, node: StageNode, by_id: Mapping[str, StageNode], run: RunRow) -> Corrections | None:
    """What a run measured, divided by what this arithmetic says of the config and the ranks that it ran with."""
    seconds, peak = run.metrics.get(_STEP_SECONDS), run.metrics.get(_PEAK)
    setup = _setup(recipe, node, by_id)
    numerics = run.key_record.get("numerics") or {}
    if not isinstance(seconds, int | float) or setup is None or numerics.get("device") != node.resources.device:
        return None
    model = RewardConfig if isinstance(node.config, RewardConfig) else TrainConfig
    ranks = int(numerics.get("world_size", setup.ranks))
    kernels = Kernels.named(str(numerics["kernels"])) if "kernels" in numerics else setup.kernels
    told = estimate(
        replace(setup, train=model.model_validate(run.config), ranks=ranks, kernels=kernels, correction=1.0)
    )
    if told is None or not told.step_seconds:
        return None
    memory = peak / told.memory.total if setup.gpu is not None and isinstance(peak, int | float) else None
    return Corrections(seconds / told.step_seconds, memory)
