"""The variants of a recipe's ablation worked out: model, training stages and reward of each, checked against each other
and against what the paper's rows say that they are. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, TypeAdapter

from eval.ablation.config import Setting, TableConfig, differing
from eval.ablation.paper import TABLES, PaperRow
from eval.config import GenerateConfig
from m4v.config import ModelConfig
from m4v.core.config import parse
from m4v.core.errors import ConfigError
from m4v.family import AnyModel
from pipelines.ablation.config import AblationConfig, VariantConfig
from pipelines.recipe_files import merge
from training.config import RewardConfig, TrainConfig
from training.sizes import sizes_of

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

_MODEL: TypeAdapter[AnyModel] = TypeAdapter(AnyModel)


@dataclass(frozen=True)
class Variant:
    """What a variant is: nothing of it refers to the recipe any more."""

    name: str
    model: AnyModel
    stages: tuple[TrainConfig, ...]
    reward: RewardConfig | None

    def settings(self) -> dict[str, JsonValue]:
        """Everything that a difference to another variant can lie in, by section."""
        stages: dict[str, JsonValue] = {stage.name: stage.model_dump(mode="json") for stage in self.stages}
        return {
            "model": self.model.model_dump(mode="json"), "train": stages,
            "reward": None if self.reward is None else self.reward.name,
        }  # fmt: skip

    def layers(self) -> object:
        """The settings as far as they make another model: the mixers of every block in place of their name, and no
        switch of a mixer that no block has."""
        settings = self.settings()
        if isinstance(self.model, ModelConfig):
            mixers = [list(self.model.mixers(block)) for block in range(self.model.single_blocks)]
            model = self.model.model_dump(mode="json")
            if not any("mm_dim" in here for here in mixers):
                model = {attribute: getattr(self.model, attribute) for attribute in sizes_of(self.model)}
            settings["model"] = model | {"mixer": mixers}
        return settings


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """Raises ConfigError naming the variant and the key that is wrong."""
    section = recipe.ablation
    if section is None:
        return ()
    if section.vbench and recipe.evaluation.vbench is None:
        raise _wrong("ablation.vbench: the recipe has no evaluation.vbench", "add it, or leave ablation.vbench out")
    stages = stages_of(recipe, section)
    sampling_of(recipe, section)
    found = tuple(_variant(recipe, section, variant, stages) for variant in section.variants)
    by_name = {variant.name: variant for variant in found}
    for table in section.tables:
        _check_table(table, by_name, recipe)
    return found


def sampling_of(recipe: Recipe, section: AblationConfig) -> GenerateConfig:
    """What is sampled of every variant; raises ConfigError for a length that the codec does not have."""
    given = {"prompts": section.prompts, "frames": section.frames}
    own = {name: value for name, value in given.items() if value is not None}
    return parse(GenerateConfig, {**dict(recipe.generate), **own}, "ablation") if own else recipe.generate


def stages_of(recipe: Recipe, section: AblationConfig) -> tuple[TrainConfig, ...]:
    """The training stages that every variant goes through; raises ConfigError for one that is not there."""
    names = [stage.name for stage in recipe.train]
    for key, wanted in (("after", [section.after] if section.after else []), ("stages", list(section.stages))):
        for name in wanted:
            if name not in names:
                raise _wrong(f"ablation.{key}: there is no training stage {name!r}", f"use one of {', '.join(names)}")
    behind = names[names.index(section.after) + 1 :] if section.after else names
    chosen = [stage for stage in recipe.train if stage.name in (section.stages or behind)]
    if not chosen:
        raise _wrong(
            f"ablation.after: no training stage comes after {section.after!r}", "name those to go through in stages"
        )
    if section.steps is None:
        return tuple(chosen)
    return tuple(stage.model_copy(update={"steps": section.steps}) for stage in chosen)


def start_model(recipe: Recipe, section: AblationConfig) -> AnyModel | None:
    """Model of the checkpoint that all variants start from; None where each starts from the seed."""
    if section.after is None:
        return None
    names = [stage.name for stage in recipe.train]
    until = recipe.attention_until
    mixes_with_attention = until is not None and names.index(section.after) <= names.index(until)
    return recipe.start_model if mixes_with_attention else recipe.model


def is_direct(variant: Variant, start: AnyModel) -> bool:
    """Whether a variant takes the checkpoint as it is: its model is that of the start, up to switches of mixers that it
    does not have."""
    return variant.model == start or (variant.model.mixer == start.mixer == "attention")


def _variant(
    recipe: Recipe, section: AblationConfig, variant: VariantConfig, stages: tuple[TrainConfig, ...]
) -> Variant:
    where = f"ablation.variants.{variant.name}"
    model = _model(recipe.model, variant.model, where)
    known = [stage.name for stage in stages]
    if unknown := sorted(set(variant.train) - set(known)):
        raise _wrong(f"{where}.train: no stage {unknown[0]!r} of the ablation", f"use one of {', '.join(known)}")
    if variant.reward and recipe.reward is None:
        raise _wrong(
            f"{where}.reward: the recipe has no reward section", "add one, or leave its rows out with left_out"
        )
    start = start_model(recipe, section)
    made = Variant(variant.name, model, tuple(_stage(s, variant.train.get(s.name, {}), where) for s in stages),
                   recipe.reward if variant.reward else None)  # fmt: skip
    if start is not None and not is_direct(made, start) and (start.mixer != "attention" or model.mixer == "attention"):
        raise _wrong(
            f"{where}.model: its mixers are not those of stage {section.after!r}, and only a checkpoint that mixes "
            "with attention is converted",
            f"set attention_until to {section.after!r}, or ablation.after to a stage before the conversion",
        )
    return made


def _model(model: AnyModel, changes: Mapping[str, JsonValue], where: str) -> AnyModel:
    found = parse(type(model), {**model.model_dump(mode="json"), **changes}, f"{where}.model")
    for attribute, field in {**sizes_of(model), "text_slots": "text_slots"}.items():
        if getattr(found, attribute) != getattr(model, attribute):
            raise _wrong(f"{where}.model: {field} is not the recipe's", "variants differ in mixers, not in sizes")
    return found


def _stage(stage: TrainConfig, changes: Mapping[str, JsonValue], where: str) -> TrainConfig:
    if "name" in changes:
        raise _wrong(f"{where}.train.{stage.name}: a stage's name keys the order of its data", "leave name out")
    merged: Any = merge(stage.model_dump(mode="json"), dict(changes), where)
    return parse(TrainConfig, merged, f"{where}.train.{stage.name}")


def _check_table(table: TableConfig, variants: Mapping[str, Variant], recipe: Recipe) -> None:
    """Rows are what the paper says that they are, and no two of them are one model trained alike."""
    seen: dict[str, str] = {}
    for row in table.running:
        variant = variants[str(row.variant)]
        if table.paper is not None:
            _check_row(table, next(r for r in TABLES[table.paper].rows if r.name == row.name), variant)
        same = next((name for name, other in seen.items() if variants[other].layers() == variant.layers()), None)
        if same is not None:
            raise _wrong(
                f"table {table.name!r}: the rows {same!r} and {row.name!r} are one model trained alike",
                "give the model more single_blocks, or leave one of the rows out with left_out",
            )
        seen[row.name] = variant.name


def _check_row(table: TableConfig, row: PaperRow, variant: Variant) -> None:
    for name, value in row.model.items():
        has = getattr(variant.model, name, None)
        if has != value:
            raise _wrong(
                f"table {table.name!r}: row {row.name!r} is a model whose {name} is {value!r}, and that of variant "
                f"{variant.name!r} is {has!r}",
                "name another variant, or leave paper out of the table",
            )
    if row.reward != (variant.reward is not None):
        raise _wrong(
            f"table {table.name!r}: row {row.name!r} is {'with' if row.reward else 'without'} reward, and variant "
            f"{variant.name!r} is not", f"set its reward to {str(row.reward).lower()}",
        )  # fmt: skip


def differences(baseline: Variant, variant: Variant) -> tuple[Setting, ...]:
    return tuple(differing(baseline.settings(), variant.settings()))


def _wrong(what: str, step: str) -> ConfigError:
    return ConfigError(what, where="recipe", next_step=step)
