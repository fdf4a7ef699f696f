"""What the videos of an evaluation cost before the first is sampled, by type of GPU.

JSON of `m4v plan --json`, key `generation`: {node id: GenerationCost}; seconds and GPU-hours of each type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.config import GenerateConfig
from eval.prompts import jobs
from m4v.codec.shape import SPATIAL, TEMPORAL
from m4v.config import ModelConfig
from m4v.family import AnyModel
from m4v.wan.config import WanConfig
from m4v.wan_flow_config import WanSamplerConfig
from pipelines.plan import Plan, PlanStatus
from pipelines.spec import StageNode
from training.preflight import GPUS
from training.preflight.anchors import SAMPLING, Kernels, seconds_of, slowness, slowness_words
from training.preflight.work import forward_flops
from training.template import HIGH, WHOLE, Column

GPU_TYPES = ("h200", "h100-80gb", "a100-80gb")
MEASURED_PIXELS = 768 * 1280  # of a frame, whose decoding was measured


@dataclass(frozen=True)
class GenerationCost:
    """Of one `generate` node. `forwards`, `flops`: of one video; `seconds`: of one video by GPU type; `gpu_hours`: of
    all of them."""

    prompts: int
    videos: int
    forwards: int
    flops: float
    seconds: dict[str, float]
    gpu_hours: dict[str, float]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def generation_costs(
    nodes: Sequence[StageNode], plan: Plan, kernels: Kernels | None = None
) -> dict[str, GenerationCost]:
    """Of the `generate` nodes that `plan` expects to run; none of a checkpoint whose model the graph does not tell.
    `kernels`: of the GPUs; by default what the environment chooses."""
    by_id = {node.id: node for node in nodes}
    found = {}
    for step in plan.steps:
        node = by_id[step.node_id]
        if step.status is PlanStatus.HIT or not isinstance(node.config, GenerateConfig):
            continue
        model = _model_behind(node, by_id)
        if isinstance(model, ModelConfig | WanConfig):
            found[node.id] = cost_of(model, node.config, kernels)
    return found


def cost_of(model: AnyModel, config: GenerateConfig, kernels: Kernels | None = None) -> GenerationCost:
    """Every forward of the sampler, counted: latent frame by latent frame with its history, each stage of the pyramid,
    twice where guidance is on, thrice where self-quality guidance is, too; of Wan's every step over the whole clip.
    Seconds from text to decoded frames, by the measured pace of like videos."""
    kernels = kernels or Kernels.chosen()
    forwards, flops = video_work(model, config)
    videos = len(jobs(config.prompts, config.samples_per_prompt))
    speed = SAMPLING[kernels.kind(model), model.mixer == "attention"]
    pixels = config.frames * config.height * config.width / MEASURED_PIXELS
    one = seconds_of(flops, speed.share) + forwards * speed.forward_s + speed.video_s + pixels * speed.frame_s
    seconds = {name: one * slowness(GPUS[name], config.dtype) for name in GPU_TYPES}
    carried = (slowness_words(GPUS[name], config.dtype) for name in GPU_TYPES)
    return GenerationCost(
        prompts=len(config.prompts),
        videos=videos,
        forwards=forwards,
        flops=flops,
        seconds=seconds,
        gpu_hours={name: videos * each / 3600 for name, each in seconds.items()},
        assumptions=(f"videos are sampled, decoding included, {kernels.words(model, speed.source)}{''.join(carried)}",),
    )


def video_work(model: AnyModel, config: GenerateConfig) -> tuple[int, float]:
    """Forwards of one video and their operations."""
    sampler, height, width = config.sampler, config.height // SPATIAL, config.width // SPATIAL
    if isinstance(sampler, WanSamplerConfig):
        times = sampler.steps * (1 + (sampler.guidance > 1))
        frames = (config.frames - 1) // sampler.time_stride + 1
        return times, times * forward_flops(model, Column(WHOLE, frames), height, width)
    forwards, flops = 0, 0.0
    for unit in range(1, (config.frames - 1) // TEMPORAL + 2):
        first = unit == 1
        guidance = sampler.guidance_first if first else sampler.guidance_later
        for stage, steps in enumerate(sampler.steps_first if first else sampler.steps_later):
            quality = sampler.self_guidance > 0 and stage == HIGH and unit >= sampler.self_guidance_from
            times = steps * (1 + (guidance > 0) + quality)
            forwards += times
            flops += times * forward_flops(model, Column(stage, unit), height, width)
    return forwards, flops


def _model_behind(node: StageNode, by_id: Mapping[str, StageNode]) -> object:
    """Model of the nearest stage upstream whose config has one; None where another pipeline made the checkpoint."""
    source = node.inputs.get("checkpoint")
    while source is not None:
        upstream = by_id[source[0]]
        if (model := getattr(upstream.config, "model", None)) is not None:
            return model
        source = upstream.inputs.get("checkpoint")
    return None
