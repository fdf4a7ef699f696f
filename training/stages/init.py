"""Stage `init`: the model that training starts from, made of config and seed, or of imported weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from m4v.config import CheckpointConfig, ScheduleConfig
from m4v.core.canonical import canonical_json
from m4v.core.config import weights_names
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.family import AnyCheckpoint
from m4v.wan.config import WanCheckpointConfig, WanConfig, WanFlowConfig
from training.config import InitConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.families import family_of


def run(context: StageContext) -> None:
    """Build, initialise or import, and save; raises ConfigError when text encoder, weights and model disagree
    in size, DataIntegrityError when imported weights are not those of such a model."""
    config = context.config(InitConfig)
    check_text_sizes(config)
    imported = {name: artifact.id for name, artifact in context.weights().items()}
    missing = [name for name in config.uses if name not in imported]
    if missing:
        raise ConfigError("imported weights are no input of the stage", value=missing[0], where="init")
    checkpoint = checkpoint_config(config, imported)
    state = start_state(context, config, checkpoint)
    directory = context.output("checkpoint")
    family_of(checkpoint).save(directory, state)
    exposure = ExposureState(
        stage="init", dataset_id=None, order=None, seed=context.seed, global_batch=(), cursor=0, init_from=None
    )
    write_atomic(directory / TRAINING_STATE, canonical_json(exposure.canonical()))
    parameters = sum(tensor.numel() for tensor in state.values())
    facts: dict[str, object] = {"stage": "init", "step": 0, "parameters": parameters}
    if config.start is not None:
        facts |= {"weights": imported[config.start.weights], "convert": config.start.convert}
    context.summary("checkpoint", facts)
    context.metrics({"parameters": parameters})


def checkpoint_config(config: InitConfig, imported: Mapping[str, str]) -> AnyCheckpoint:
    """What the checkpoint's `config.json` will say; `imported` has the ids of the stage's weights by name."""
    codec, text = config.codec.model_dump(mode="json"), config.text_encoder.model_dump(mode="json")
    weights = {name: imported[name] for name in weights_names(config.codec, config.text_encoder)}
    model, schedule = config.model, config.schedule
    if isinstance(model, WanConfig) and isinstance(schedule, WanFlowConfig):
        return WanCheckpointConfig(model=model, flow=schedule, codec=codec, text_encoder=text, weights=weights)
    assert not isinstance(model, WanConfig)  # the config has checked that both are of one family
    assert isinstance(schedule, ScheduleConfig)
    return CheckpointConfig(model=model, schedule=schedule, codec=codec, text_encoder=text, weights=weights)


def start_state(context: StageContext, config: InitConfig, checkpoint: AnyCheckpoint) -> Mapping[str, Tensor]:
    """The model's tensors by name: from the stage's seed, or from the imported weights that the config names."""
    family = family_of(checkpoint)
    if config.start is None:
        return family.initial(context.seed)
    return family.imported(context.weights()[config.start.weights], config.start, context.seed)


def check_text_sizes(config: InitConfig) -> None:
    model, text = config.model, config.text_encoder
    pairs = {
        "text_dim": (model.text_dim, text.embedding_dim),
        "pooled_dim": (getattr(model, "pooled_dim", None), text.pooled_dim),  # of which Wan has none
        "text_slots": (model.text_slots, text.slots),
    }
    for key, (has, needs) in pairs.items():
        if has not in (None, needs):
            raise ConfigError(
                f"model.{key} does not fit the text encoder", value=has, next_step=f"set model.{key} to {needs}"
            )
