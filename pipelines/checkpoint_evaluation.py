"""A checkpoint of the ledger sampled for a suite and measured by it, as two recorded stages of a run of their own.

found = find_checkpoint(id, {}, ema=True)
sampling = sampling_config(found, "fast", None, None, "cpu")
nodes = checkpoint_nodes(ledger, found, sampling, VBenchConfig(), {}, resources)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import TypeAdapter

from eval.config import EvaluateConfig, GenerateConfig
from eval.vbench.config import VBenchConfig
from eval.vbench.long import Rate, problem_of_length
from eval.vbench.v2 import INSTANCE, problem_of_prompts, problem_of_seconds
from m4v.config import default_dtype
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import parse
from m4v.core.errors import ConfigError
from m4v.core.stage import WEIGHTS_INPUT, Resources
from m4v.text.config import MiniLmConfig, TextEncoderConfig
from pipelines import stages
from pipelines.dataset_versions import pinned_node
from pipelines.generation.checkpoint import FoundCheckpoint
from pipelines.generation.settings import video_config
from pipelines.ledger import Ledger
from pipelines.spec import StageNode, StageSpec

Suite = Literal["vbench", "vbench-long", "vbench2", "vbench-i2v", "fast", "local"]
SAMPLING = "generate"
# Prompts of each suite and how many videos of each, unless the caller says otherwise.
PROTOCOL: Mapping[Suite, tuple[str, int]] = {
    "vbench": ("vbench", 5),
    "vbench-long": ("vbench", 5),
    "vbench2": ("vbench2", 3),
    "vbench-i2v": ("vbench-i2v", 5),
    "fast": ("vbench-fast50", 1),
    "local": ("shapes-24", 1),
}


def sampling_config(
    found: FoundCheckpoint,
    suite: Suite,
    prompts: str | None,
    samples_per_prompt: int | None,
    device: str,
    dimensions: Sequence[str] = (),
) -> GenerateConfig:
    """What is sampled for a suite: size, rate and sampler as the checkpoint was sampled last, or as its recipe does.

    Raises ConfigError for prompts that are not there or that none of `dimensions` reads, where nothing says how large
    the videos are, and for videos of a length that the suite does not take."""
    if suite == "vbench-i2v":
        raise ConfigError(
            "videos of VBench-I2V begin with its pictures, and evaluation samples from prompts alone", value=suite,
            next_step="make them with m4v generate --prompts FILE.jsonl, each line with its image, and take them with "
            "m4v evaluate import --suite vbench-i2v --names MAP.json",
        )  # fmt: skip
    named, count = PROTOCOL[suite]
    values = {
        **dict(video_config(found, {}, {})), "prompts": prompts or named, "ema": found.ema,
        "samples_per_prompt": samples_per_prompt or count, "dtype": default_dtype(device),
    }  # fmt: skip
    config = parse(GenerateConfig, values, "m4v evaluate run")
    problem = problem_of_length(Rate(config.frames, config.fps)) if suite == "vbench-long" else None
    if problem is not None:
        raise ConfigError(
            problem, where=f"as {found.origin or 'told'}",
            next_step="measure it with --suite vbench, or sample it longer by a recipe's generate",
        )  # fmt: skip
    if suite == "vbench2" and dimensions:
        _check_v2(config, found, dimensions)
    return config


def _check_v2(config: GenerateConfig, found: FoundCheckpoint, dimensions: Sequence[str]) -> None:
    if (problem := problem_of_prompts(dimensions, {p.scored_as or p.text for p in config.prompts})) is not None:
        raise ConfigError(problem, where="--prompts", next_step="leave --prompts out, or say --prompts vbench2")
    if (problem := problem_of_seconds(dimensions, config.frames, config.fps)) is not None:
        raise ConfigError(
            problem, value=f"{config.frames} frames at {config.fps:g} a second", where=f"as {found.origin or 'told'}",
            next_step=f"leave {INSTANCE} out (--dimensions), or sample it longer by a recipe's generate",
        )  # fmt: skip


def checkpoint_nodes(
    ledger: Ledger,
    found: FoundCheckpoint,
    sampling: GenerateConfig,
    measuring: VBenchConfig | EvaluateConfig,
    locations: Mapping[str, str],
    resources: Resources,
) -> list[StageNode]:
    """The checkpoint and the weights that it decodes and reads prompts with, pinned, then its samples and their scores.

    A recipe that samples it so has made both already: they are cache hits then. Raises InputError for an artifact that
    no run made."""
    row = ledger.artifact(found.identity, ArtifactKind.CHECKPOINT)
    checkpoint = pinned_node(ledger, row)
    pinned = [checkpoint]
    inputs = {"checkpoint": (checkpoint.id, "checkpoint")}
    for name, identity in sorted(found.imported.items()):
        node = pinned_node(ledger, ledger.artifact(identity, ArtifactKind.WEIGHTS))
        pinned.append(node)
        inputs[f"{WEIGHTS_INPUT}.{name}"] = (node.id, "weights")
    seed = ledger.producers(row.artifact_id)[-1].seed
    samples = StageNode(
        id=SAMPLING, spec=stages.GENERATE, config=sampling, inputs=inputs, seed=seed, resources=resources,
        weights=_packaged(found),
    )  # fmt: skip
    spec = measuring_stage(measuring)
    scores = StageNode(
        id=spec.name, spec=spec, config=measuring, inputs={"samples": (SAMPLING, "samples")}, seed=seed,
        locations=dict(locations), resources=resources,
    )  # fmt: skip
    return [*{node.id: node for node in pinned}.values(), samples, scores]


def measuring_stage(config: VBenchConfig | EvaluateConfig) -> StageSpec:
    return stages.VBENCH if isinstance(config, VBenchConfig) else stages.EVALUATE


def _packaged(found: FoundCheckpoint) -> dict[str, str]:
    """Packaged models that encode its prompts: they belong to the key of whoever does."""
    adapter: TypeAdapter[TextEncoderConfig] = TypeAdapter(TextEncoderConfig)
    encoder = adapter.validate_python(found.config.text_encoder)
    return encoder.weights() if isinstance(encoder, MiniLmConfig) else {}
