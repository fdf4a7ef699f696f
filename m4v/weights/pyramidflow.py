"""PyramidFlow's published transformer in our terms: its `config.json` and the prefixes of its training checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m4v.checkpoint_files import read_json_object
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError

_CLASS = "PyramidFluxTransformer"
_NEEDED = (
    "attention_head_dim", "axes_dims_rope", "in_channels", "joint_attention_dim", "num_attention_heads",
    "num_layers", "num_single_layers", "pooled_projection_dim",
)  # fmt: skip
_PATCH_PLACES = 4  # 2 x 2, whatever `patch_size` says
_STRIPPED, _SKIPPED = "dit.", ("vae.", "text_encoder.")


def model_config(published: Mapping[str, object], where: str) -> ModelConfig:
    """The attention model of a published `config.json` (class PyramidFluxTransformer).

    Raises DataIntegrityError for another class, a missing key, or sizes that no such model has.
    """
    kind = published.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise DataIntegrityError(f"config is not that of {_CLASS}", value=kind, where=where)
    if missing := [key for key in _NEEDED if key not in published]:
        raise DataIntegrityError("config lacks a size", value=missing, where=where)
    sizes = {key: published[key] for key in _NEEDED if key != "axes_dims_rope"}
    if strange := [key for key, value in sizes.items() if not isinstance(value, int) or isinstance(value, bool)]:
        raise DataIntegrityError(f"{strange[0]} is no whole number", value=sizes[strange[0]], where=where)
    number = {key: int(str(value)) for key, value in sizes.items()}
    fields: dict[str, object] = {
        "mixer": "attention",
        "width": number["attention_head_dim"] * number["num_attention_heads"],
        "heads": number["num_attention_heads"],
        "double_blocks": number["num_layers"],
        "single_blocks": number["num_single_layers"],
        "latent_channels": number["in_channels"] // _PATCH_PLACES,
        "text_dim": number["joint_attention_dim"],
        "pooled_dim": number["pooled_projection_dim"],
        "rope_axes": published["axes_dims_rope"],
        "use_temporal_causal": published.get("use_temporal_causal", True),
    }
    try:
        return parse(ModelConfig, fields, where)
    except ConfigError as error:
        raise DataIntegrityError(f"config is of no model that can be built: {error.what}", where=where) from None


def read_model_config(path: Path) -> ModelConfig:
    """`model_config` of a published file; raises DataIntegrityError as well when it is no JSON object."""
    return model_config(read_json_object(path), str(path))


def checkpoint_config(published: Mapping[str, object], where: str) -> CheckpointConfig:
    """What `load_checkpoint` reads: the model, and the schedule it was trained with (constant corruption)."""
    return CheckpointConfig(model=model_config(published, where), schedule=ScheduleConfig(corruption="constant"))


def our_key(published: str) -> str | None:
    """Our name of a published tensor; None for one of another model that a training checkpoint carries along."""
    return None if published.startswith(_SKIPPED) else published.removeprefix(_STRIPPED)
