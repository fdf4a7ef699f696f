"""Stage `convert`: a checkpoint that was trained with attention becomes one with state-space mixers (paper D.2)."""

from __future__ import annotations

import json

from m4v.checkpoint import load_checkpoint, read_config, save_checkpoint
from m4v.core.canonical import canonical_json
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.model.convert import attention_to_mamba
from training.config import ConvertConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.sizes import SIZES


def run(context: StageContext) -> None:
    """Convert and save; raises ConfigError when the checkpoint mixes with something else, or has other sizes."""
    config, start = context.config(ConvertConfig), context.input("checkpoint")
    trained = read_config(start.path("config.json"))
    if trained.model.mixer != "attention" or config.model.mixer == "attention":
        raise ConfigError(
            f"the checkpoint mixes with {trained.model.mixer} and is to mix with {config.model.mixer}", where="convert",
            next_step="convert a checkpoint whose model.mixer is attention to another mixer",
        )  # fmt: skip
    for attribute, field in SIZES.items():
        has, needs = getattr(config.model, attribute), getattr(trained.model, attribute)
        if has != needs:
            raise ConfigError(
                f"model.{field} is not that of the checkpoint, {json.dumps(needs)}", value=has, where="convert"
            )
    model, _ = load_checkpoint(start.path, ema=config.start_from == "ema")
    state = attention_to_mamba(model.state_dict(), config.model, context.seed)
    directory = context.output("checkpoint")
    save_checkpoint(directory, trained.model_copy(update={"model": config.model, "ema": False}), state)
    exposure = ExposureState(
        stage="convert", dataset_id=None, order=None, seed=context.seed, global_batch=(), cursor=0, init_from=start.id
    )
    write_atomic(directory / TRAINING_STATE, canonical_json(exposure.canonical()))
    parameters = sum(tensor.numel() for tensor in state.values())
    context.summary("checkpoint", {"stage": "convert", "step": 0, "parameters": parameters})
    context.metrics({"parameters": parameters})
