"""Stage `init`: the model that training starts from, made of config and seed, or of imported weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from m4v.checkpoint import save_checkpoint
from m4v.config import CheckpointConfig
from m4v.core.canonical import canonical_json
from m4v.core.config import weights_names
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.model import build_model
from training.config import InitConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.imported import imported_state


def run(context: StageContext) -> None:
    """Build, initialise or import, and save; raises ConfigError when text encoder, weights and model disagree
    in size, DataIntegrityError when imported weights are not those of such a model."""
    config = context.config(InitConfig)
    check_text_sizes(config)
    state = start_state(context, config)
    imported = {name: artifact.id for name, artifact in context.weights().items()}
    checkpoint = CheckpointConfig(
        model=config.model,
        schedule=config.schedule,
        codec=config.codec.model_dump(mode="json"),
        text_encoder=config.text_encoder.model_dump(mode="json"),
        weights={name: imported[name] for name in weights_names(config.codec, config.text_encoder)},
    )
    directory = context.output("checkpoint")
    save_checkpoint(directory, checkpoint, state)
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


def start_state(context: StageContext, config: InitConfig) -> Mapping[str, Tensor]:
    """The model's tensors by name: from the stage's seed, or from the imported weights that the config names.

    Raises ConfigError when a name that the config uses is no input.
    """
    missing = [name for name in config.uses if name not in context.weights()]
    if missing:
        raise ConfigError("imported weights are no input of the stage", value=missing[0], where="init")
    if config.start is None:
        return build_model(config.model, context.seed).state_dict()
    return imported_state(context.weights()[config.start.weights], config.start, config, context.seed)


def check_text_sizes(config: InitConfig) -> None:
    model, text = config.model, config.text_encoder
    pairs = {
        "text_dim": (model.text_dim, text.embedding_dim),
        "pooled_dim": (model.pooled_dim, text.pooled_dim),
        "text_slots": (model.text_slots, text.slots),
    }
    for key, (has, needs) in pairs.items():
        if has != needs:
            raise ConfigError(
                f"model.{key} does not fit the text encoder", value=has, next_step=f"set model.{key} to {needs}"
            )
