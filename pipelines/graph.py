"""From a resolved recipe to its stage nodes, in topological order (the data's way through the house)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataprep.encode_config import weights_of as packaged_weights
from m4v.core.assets import resolve
from m4v.core.errors import ConfigError
from m4v.core.stage import WEIGHTS_INPUT, Resources
from m4v.wan.published_config import read_published_config
from m4v.weights import catalogue
from m4v.weights.config import WeightsConfig
from m4v.weights.pyramidflow import read_model_config
from m4v.weights.source import source_files, source_folder
from pipelines import stages
from pipelines.ablation.graph import add_ablation
from pipelines.before_reward import add_before_reward
from pipelines.builder import Builder
from pipelines.imported import Inputs, imported
from pipelines.lookup import PINNED
from pipelines.recipe import REWARD_STAGE, Recipe
from pipelines.spec import StageNode
from pipelines.vbench_gate import gates_on_vbench
from training.config import ConvertConfig, InitConfig
from training.sizes import check_sizes


def build_graph(recipe: Recipe) -> list[StageNode]:
    """All nodes of `recipe`.

    Raises InputError when an `asset:` location is not on this machine, ConfigError when the model has other sizes
    than the weights it starts from, DataIntegrityError when their published config is of no such model.
    """
    build = Builder(recipe)
    locations = {s.name: resolve(s.location) for s in recipe.sources if s.location is not None}
    sources: Inputs = {}
    for number, entry in enumerate(recipe.sources):
        here = {entry.name: locations[entry.name]} if entry.name in locations else {}
        node = build.add(f"source.{entry.name}", stages.SOURCE, entry.config, {}, here)
        sources[f"source.{number}"] = (node, "source")
    for weights in recipe.weights:  # before the long work, so that what is wrong with them is found first
        resources = recipe.active_profile.resources(stages.WEIGHTS.name)
        build.nodes.append(weights_node(weights.config, weights.location, resources))
        if recipe.init is not None and recipe.init.weights == weights.name:
            _check_start(recipe, build.nodes[-1])
    curating = recipe.curate.counting_for(recipe.encode.text_encoder)
    counting = imported(None if curating.captions is None else curating.captions.counting)
    curate = build.add("curate", stages.CURATE, curating, {**sources, **counting}, locations)
    inputs = {"clips": (curate, "clips"), **sources, **imported(recipe.encode.codec, recipe.encode.text_encoder)}
    encode = build.add("encode", stages.ENCODE, recipe.encode, inputs, locations)
    datasets = _encodings(build, inputs, locations)
    checkpoint, trained = _training(build, encode, datasets)
    evaluated = _evaluation(build, checkpoint)
    evaluated |= add_before_reward(build)
    evaluated |= add_ablation(build, encode, datasets)
    _report(build, sources, curate, encode, trained, evaluated)
    return build.nodes


def weights_node(config: WeightsConfig, location: str | None, resources: Resources | None = None) -> StageNode:
    """The import of third-party weights. Its seed is always 0: nothing in it is drawn, so one import serves
    every recipe and `m4v weights import`."""
    return StageNode(
        id=f"{WEIGHTS_INPUT}.{config.name}",
        spec=stages.WEIGHTS,
        config=config,
        resources=resources or Resources(ranks=1, threads=1, workers=1),
        locations={} if location is None else {config.name: _absolute(resolve(location))},
    )


def _absolute(location: str) -> str:
    """A stage process may have another working directory."""
    return location if "://" in location or location.startswith(PINNED) else str(Path(location).expanduser().absolute())


def _check_start(recipe: Recipe, node: StageNode) -> None:
    """Hold the recipe's model against the published config of the weights it starts from: a wrong size would end
    `init`, but only after hours of curation. Where the file is not there, the node's probe says so."""
    assert isinstance(node.config, WeightsConfig)
    entry = catalogue.entry(node.config.entry)
    is_wan = entry.format.startswith("wan_")
    for file in source_files(entry, source_folder(node.config, node.locations)):
        # Wan's entries have configs of other models, too: the transformer's is its own, or lies at the top.
        own = file.place in ("transformer/config.json", "config.json") if is_wan else file.path.name == "config.json"
        if own and file.path.is_file():
            read = read_published_config if is_wan else read_model_config
            check_sizes(read(file.path), recipe.start_model, node.config.name)


def _encodings(build: Builder, inputs: Inputs, locations: dict[str, str]) -> dict[str, str]:
    """Training stages that read another encoding of the clips, and its node."""
    found: dict[str, str] = {}
    for entry in build.recipe.encodings:
        config = build.recipe.encode.model_copy(update={"buckets": entry.buckets})
        node = build.add(f"encode.{entry.name}", stages.ENCODE, config, inputs, locations)
        found |= dict.fromkeys(entry.stages, node)
    return found


def _training(build: Builder, encode: str, datasets: Mapping[str, str]) -> tuple[str, list[str]]:
    """The ladder: every stage starts from the checkpoint of the one before. `datasets`: encodings that stages read in
    place of `encode`."""
    recipe = build.recipe
    codec, text_encoder = recipe.encode.codec, recipe.encode.text_encoder
    init = InitConfig(
        model=recipe.start_model, schedule=recipe.schedule, codec=codec, text_encoder=text_encoder, start=recipe.init
    )
    checkpoint = build.add("init", stages.INIT, init, imported(recipe.init, codec, text_encoder))
    trained: list[str] = []
    for config in recipe.train:
        dataset = datasets.get(config.name, encode)
        inputs = {"dataset": (dataset, "dataset"), "checkpoint": (checkpoint, "checkpoint")}
        checkpoint = build.add(f"train.{config.name}", stages.TRAIN, config, inputs)
        trained.append(checkpoint)
        if config.name == recipe.attention_until:
            checkpoint = build.add(
                "convert", stages.CONVERT, ConvertConfig(model=recipe.model), {"checkpoint": (checkpoint, "checkpoint")}
            )
    if recipe.reward is not None:
        dataset = datasets.get(REWARD_STAGE, encode)
        inputs = {
            "dataset": (dataset, "dataset"),
            "checkpoint": (checkpoint, "checkpoint"),
            **imported(codec, *recipe.reward.scorers),
        }
        checkpoint = build.add("reward", stages.REWARD, recipe.reward, inputs)
        trained.append(checkpoint)
    return checkpoint, trained


def _evaluation(build: Builder, checkpoint: str) -> Inputs:
    """The trained model and, with the same prompts and seeds, the untrained one it must beat."""
    recipe, outputs = build.recipe, {}
    codec, text_encoder = recipe.encode.codec, recipe.encode.text_encoder
    for name, source in (("trained", checkpoint), ("untrained", "init")):
        inputs = {"checkpoint": (source, "checkpoint"), **imported(codec, text_encoder)}
        samples = build.add(
            f"generate.{name}", stages.GENERATE, recipe.generate, inputs, weights=packaged_weights(recipe.encode)
        )
        scores = build.add(f"evaluate.{name}", stages.EVALUATE, recipe.evaluate, {"samples": (samples, "samples")})
        suffix = "" if name == "trained" else "_untrained"
        outputs[f"samples{suffix}"] = (samples, "samples")
        outputs[f"scores{suffix}"] = (scores, "scores")
    gate = {"scores": outputs["scores"], "baseline": outputs["scores_untrained"]}
    if gates_on_vbench(recipe.gate):
        gate["suite"] = (_vbench(build, checkpoint), "scores")
    outputs["gate"] = (build.add("gate", stages.GATE, recipe.gate, gate), "scores")
    if "suite" not in gate:
        _vbench(build, checkpoint)
    return outputs


def _vbench(build: Builder, checkpoint: str) -> str:
    """The suite's prompts sampled from the trained model, and VBench on them: its node, where the recipe has one."""
    recipe, entry = build.recipe, build.recipe.evaluation.vbench
    if entry is None:
        return ""
    sampled = {"prompts": entry.prompts, "samples_per_prompt": entry.samples_per_prompt}
    config = recipe.generate.model_copy(update=sampled)
    inputs = {"checkpoint": (checkpoint, "checkpoint"), **imported(recipe.encode.codec, recipe.encode.text_encoder)}
    weights = packaged_weights(recipe.encode)
    samples = build.add("generate.vbench", stages.GENERATE, config, inputs, weights=weights)
    return build.add("vbench", stages.VBENCH, entry.config, {"samples": (samples, "samples")}, entry.locations)


def _report(build: Builder, sources: Inputs, curate: str, encode: str, trained: list[str], evaluated: Inputs) -> None:
    inputs: Inputs = {**sources, "clips": (curate, "clips"), "dataset": (encode, "dataset")}
    inputs |= {f"checkpoint.{n.removeprefix('train.')}": (n, "checkpoint") for n in trained}
    build.add("report", stages.REPORT, build.recipe.report, inputs | evaluated)


def node_by_id(nodes: list[StageNode], node_id: str) -> StageNode:
    """Raises ConfigError listing the ids when there is no such node."""
    for node in nodes:
        if node.id == node_id:
            return node
    raise ConfigError(
        "the recipe has no such stage", value=node_id, next_step=f"use one of {', '.join(n.id for n in nodes)}"
    )
