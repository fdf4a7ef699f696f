"""Stage `init`: the untrained model, from config and seed alone."""

from __future__ import annotations

from m4v.checkpoint import save_checkpoint
from m4v.config import CheckpointConfig
from m4v.core.canonical import canonical_json
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.model import build_model
from training.config import InitConfig
from training.exposure import TRAINING_STATE, ExposureState


def run(context: StageContext) -> None:
    """Build, initialise and save; raises ConfigError when text encoder and model disagree in size."""
    config = context.config(InitConfig)
    check_text_sizes(config)
    model = build_model(config.model, context.seed)
    checkpoint = CheckpointConfig(
        model=config.model,
        schedule=config.schedule,
        codec=config.codec.model_dump(mode="json"),
        text_encoder=config.text_encoder.model_dump(mode="json"),
    )
    directory = context.output("checkpoint")
    save_checkpoint(directory, checkpoint, model.state_dict())
    state = ExposureState(
        stage="init", dataset_id=None, order=None, seed=context.seed, global_batch=(), cursor=0, init_from=None
    )
    write_atomic(directory / TRAINING_STATE, canonical_json(state.canonical()))
    parameters = sum(p.numel() for p in model.parameters())
    context.summary("checkpoint", {"stage": "init", "step": 0, "parameters": parameters})
    context.metrics({"parameters": parameters})


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
