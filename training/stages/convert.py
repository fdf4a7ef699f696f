"""Stage `convert`: a checkpoint that was trained with attention becomes one with state-space mixers (paper D.2)."""

from __future__ import annotations

import json

from m4v.core.canonical import canonical_json
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.family import read_checkpoint_config
from training.config import ConvertConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.families import family_of
from training.sizes import sizes_of


def run(context: StageContext) -> None:
    """Convert and save; raises ConfigError when the checkpoint mixes with something else, or has other sizes."""
    config, start = context.config(ConvertConfig), context.input("checkpoint")
    trained = read_checkpoint_config(start.path("config.json"))
    if trained.model.mixer != "attention" or config.model.mixer == "attention":
        raise ConfigError(
            f"the checkpoint mixes with {trained.model.mixer} and is to mix with {config.model.mixer}", where="convert",
            next_step="convert a checkpoint whose model.mixer is attention to another mixer",
        )  # fmt: skip
    if type(trained.model) is not type(config.model):
        raise ConfigError(
            "the checkpoint is of another family of models",
            where="convert",
            next_step="convert to a model of the same kind",
        )
    for attribute, field in sizes_of(config.model).items():
        has, needs = getattr(config.model, attribute), getattr(trained.model, attribute)
        if has != needs:
            raise ConfigError(
                f"model.{field} is not that of the checkpoint, {json.dumps(needs)}", value=has, where="convert"
            )
    model = family_of(trained).load(start.path, ema=config.start_from == "ema")
    family = family_of(trained.model_copy(update={"model": config.model, "ema": False}))
    state = family.converted(model.state_dict(), context.seed)
    directory = context.output("checkpoint")
    family.save(directory, state)
    exposure = ExposureState(
        stage="convert", dataset_id=None, order=None, seed=context.seed, global_batch=(), cursor=0, init_from=start.id
    )
    write_atomic(directory / TRAINING_STATE, canonical_json(exposure.canonical()))
    parameters = sum(tensor.numel() for tensor in state.values())
    context.summary("checkpoint", {"stage": "convert", "step": 0, "parameters": parameters})
    context.metrics({"parameters": parameters})
