"""From a resolved recipe to its stage nodes, in topological order (the data's way through the house)."""

from __future__ import annotations

from m4v.core.assets import resolve
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from pipelines import stages
from pipelines.recipe import Recipe
from pipelines.spec import StageNode, StageSpec
from training.config import InitConfig

Inputs = dict[str, tuple[str, str]]


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.nodes: list[StageNode] = []

    def add(
        self,
        node_id: str,
        spec: StageSpec,
        config: FrozenModel,
        inputs: Inputs,
        locations: dict[str, str] | None = None,
    ) -> str:
        self.nodes.append(
            StageNode(
                id=node_id,
                spec=spec,
                config=config,
                inputs=inputs,
                seed=self.recipe.seed,
                resources=self.recipe.active_profile.resources(spec.name),
                locations=locations or {},
            )
        )
        return node_id


def build_graph(recipe: Recipe) -> list[StageNode]:
    """All nodes of `recipe`; raises InputError when an `asset:` location is not on this machine."""
    build = _Builder(recipe)
    locations = {s.name: resolve(s.location) for s in recipe.sources if s.location is not None}
    sources: Inputs = {}
    for number, entry in enumerate(recipe.sources):
        here = {entry.name: locations[entry.name]} if entry.name in locations else {}
        node = build.add(f"source.{entry.name}", stages.SOURCE, entry.config, {}, here)
        sources[f"source.{number}"] = (node, "source")
    curate = build.add("curate", stages.CURATE, recipe.curate, sources, locations)
    encode = build.add("encode", stages.ENCODE, recipe.encode, {"clips": (curate, "clips"), **sources}, locations)
    checkpoint, trained = _training(build, encode)
    evaluated = _evaluation(build, checkpoint)
    _report(build, sources, curate, encode, trained, evaluated)
    return build.nodes


def _training(build: _Builder, encode: str) -> tuple[str, list[str]]:
    """The ladder: every stage starts from the checkpoint of the one before."""
    recipe = build.recipe
    init = InitConfig(
        model=recipe.model, schedule=recipe.schedule, codec=recipe.encode.codec, text_encoder=recipe.encode.text_encoder
    )
    checkpoint = build.add("init", stages.INIT, init, {})
    trained: list[str] = []
    for config in recipe.train:
        inputs = {"dataset": (encode, "dataset"), "checkpoint": (checkpoint, "checkpoint")}
        checkpoint = build.add(f"train.{config.name}", stages.TRAIN, config, inputs)
        trained.append(checkpoint)
    if recipe.reward is not None:
        inputs = {"dataset": (encode, "dataset"), "checkpoint": (checkpoint, "checkpoint")}
        checkpoint = build.add("reward", stages.REWARD, recipe.reward, inputs)
        trained.append(checkpoint)
    return checkpoint, trained


def _evaluation(build: _Builder, checkpoint: str) -> Inputs:
    """The trained model and, with the same prompts and seeds, the untrained one it must beat."""
    recipe, outputs = build.recipe, {}
    for name, source in (("trained", checkpoint), ("untrained", "init")):
        samples = build.add(
            f"generate.{name}", stages.GENERATE, recipe.generate, {"checkpoint": (source, "checkpoint")}
        )
        scores = build.add(f"evaluate.{name}", stages.EVALUATE, recipe.evaluate, {"samples": (samples, "samples")})
        suffix = "" if name == "trained" else "_untrained"
        outputs[f"samples{suffix}"] = (samples, "samples")
        outputs[f"scores{suffix}"] = (scores, "scores")
    gate = {"scores": outputs["scores"], "baseline": outputs["scores_untrained"]}
    outputs["gate"] = (build.add("gate", stages.GATE, recipe.gate, gate), "scores")
    return outputs


def _report(build: _Builder, sources: Inputs, curate: str, encode: str, trained: list[str], evaluated: Inputs) -> None:
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
