"""The nodes of an ablation: of each variant its start, training, videos and scores, and one artifact a table.

What the recipe does anyway is not done twice: a variant's stage that equals one of the graph is that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dataprep.encode_config import weights_of as packaged_weights
from eval.ablation.config import AblationStageConfig, StageRow, TableConfig
from m4v.core.config import FrozenModel
from pipelines import stages
from pipelines.ablation.config import AblationConfig
from pipelines.ablation.variants import (
    Variant,
    differences,
    is_direct,
    sampling_of,
    stages_of,
    start_model,
    variants_of,
)  # fmt: skip
from pipelines.imported import Inputs, imported
from pipelines.spec import StageSpec
from training.config import ConvertConfig, InitConfig, StartConfig

if TYPE_CHECKING:
    from pipelines.builder import Builder

NODE = "ablation"


def add_ablation(build: Builder, encode: str, datasets: Mapping[str, str]) -> Inputs:
    """Add the nodes of the recipe's ablation, if it has one; returns the tables as inputs of the report.

    `datasets`: encodings that stages read in place of `encode`. Raises ConfigError for a variant that cannot be."""
    section = build.recipe.ablation
    if section is None:
        return {}
    variants = {variant.name: variant for variant in variants_of(build.recipe)}
    ports = {name: _Ports(build, section, variant, encode, datasets).all() for name, variant in variants.items()}
    found: Inputs = {}
    for table in section.tables:
        inputs = {f"{port}.{name}": place for name in table.variants for port, place in ports[name].items()}
        node = build.add(f"{NODE}.{table.name}", stages.ABLATION, _config(build, section, table, variants), inputs)
        found[f"{NODE}.{table.name}"] = (node, "scores")
    return found


def _config(
    build: Builder, section: AblationConfig, table: TableConfig, variants: Mapping[str, Variant]
) -> AblationStageConfig:
    base = variants[str(table.base.variant)]
    rows = tuple(
        StageRow(**dict(row), differs=() if row.variant is None else differences(base, variants[row.variant]))
        for row in table.rows
    )
    names = tuple(stage.name for stage in stages_of(build.recipe, section))
    return AblationStageConfig(**{**dict(table), "rows": rows}, start=section.after, stages=names)


class _Ports:
    """The nodes of one variant; `all` adds them and tells its artifacts by what a table calls them."""

    def __init__(
        self, build: Builder, section: AblationConfig, variant: Variant, encode: str, datasets: Mapping[str, str]
    ) -> None:
        self._build, self._section, self._variant = build, section, variant
        self._encode, self._datasets = encode, datasets

    def all(self) -> Inputs:
        """start, trained, checkpoint, scores, and vbench where it is asked for."""
        build, variant = self._build, self._variant
        start = self._start()
        trained = start
        for config in variant.stages:
            inputs = {"dataset": (self._dataset(config.name), "dataset"), "checkpoint": (trained, "checkpoint")}
            name = f"train.{config.name}.{variant.name}"
            trained = self._once(name, stages.TRAIN, config, inputs, like=f"train.{config.name}")
        checkpoint = trained
        if variant.reward is not None:
            inputs = {
                "dataset": (self._dataset("reward"), "dataset"), "checkpoint": (trained, "checkpoint"),
                **imported(build.recipe.encode.codec, *variant.reward.scorers),
            }  # fmt: skip
            checkpoint = self._once(f"reward.{variant.name}", stages.REWARD, variant.reward, inputs, like="reward")
        found: Inputs = {
            "start": (start, "checkpoint"),
            "trained": (trained, "checkpoint"),
            "checkpoint": (checkpoint, "checkpoint"),
        }
        return found | self._scores(checkpoint)

    def _dataset(self, stage: str) -> str:
        return self._datasets.get(stage, self._encode)

    def _start(self) -> str:
        """The checkpoint that the variant starts from: shared, converted, or made of the seed."""
        recipe, variant, after = self._build.recipe, self._variant, self._section.after
        model = start_model(recipe, self._section)
        if after is None or model is None:
            return self._initial()
        shared = (f"train.{after}", "checkpoint")
        if is_direct(variant, model):
            return shared[0]
        config = ConvertConfig(model=variant.model)
        return self._once(f"convert.{variant.name}", stages.CONVERT, config, {"checkpoint": shared}, like="convert")

    def _initial(self) -> str:
        recipe, variant = self._build.recipe, self._variant
        codec, text_encoder = recipe.encode.codec, recipe.encode.text_encoder
        start = recipe.init
        if start is not None:
            convert = "none" if variant.model.mixer == "attention" else "attention_to_mamba"
            start = StartConfig.model_validate({"weights": start.weights, "convert": convert})
        config = InitConfig(
            model=variant.model, schedule=recipe.schedule, codec=codec, text_encoder=text_encoder, start=start
        )
        inputs = imported(start, codec, text_encoder)
        return self._once(f"init.{variant.name}", stages.INIT, config, inputs, like="init")

    def _scores(self, checkpoint: str) -> Inputs:
        recipe, name = self._build.recipe, self._variant.name
        codec, text_encoder = recipe.encode.codec, recipe.encode.text_encoder
        inputs = {"checkpoint": (checkpoint, "checkpoint"), **imported(codec, text_encoder)}
        weights = packaged_weights(recipe.encode)
        sampling = sampling_of(recipe, self._section)
        samples = self._once(
            f"generate.{name}", stages.GENERATE, sampling, inputs, like="generate.trained", weights=weights
        )
        read: Inputs = {"samples": (samples, "samples")}
        scores = self._once(f"evaluate.{name}", stages.EVALUATE, recipe.evaluate, read, like="evaluate.trained")
        found: Inputs = {"scores": (scores, "scores")}
        entry = recipe.evaluation.vbench if self._section.vbench else None
        if entry is not None:
            sampled = {"prompts": entry.prompts, "samples_per_prompt": entry.samples_per_prompt}
            config = recipe.generate.model_copy(update=sampled)
            node = f"generate.vbench.{name}"
            samples = self._once(
                node, stages.GENERATE, config, inputs, like="generate.vbench", weights=weights
            )  # fmt: skip
            read = {"samples": (samples, "samples")}
            measured = self._once(
                f"vbench.{name}", stages.VBENCH, entry.config, read, like="vbench", locations=entry.locations
            )
            found["vbench"] = (measured, "scores")
        return found

    def _once(
        self,
        node_id: str,
        spec: StageSpec,
        config: FrozenModel,
        inputs: Inputs,
        *,
        like: str,
        locations: dict[str, str] | None = None,
        weights: Mapping[str, str] | None = None,
    ) -> str:
        """The node that does this already, else a new one with the resources of `like`."""
        for node in self._build.nodes:
            if node.spec.name == spec.name and node.config == config and dict(node.inputs) == inputs:
                return node.id
        return self._build.add(node_id, spec, config, inputs, locations, weights, like)
