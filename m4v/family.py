"""The two families of models, told by `kind` of the model: the pyramid's (none) and Wan's (`wan`). Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Discriminator, Tag

from m4v.checkpoint_files import existing_file, read_config_of, read_json_object
from m4v.config import CheckpointConfig, ModelConfig, family_of
from m4v.wan.config import WanCheckpointConfig, WanConfig

AnyModel = Annotated[
    Annotated[ModelConfig, Tag("pyramid")] | Annotated[WanConfig, Tag("wan")],
    Discriminator(family_of, custom_error_type="family", custom_error_message="kind is wan, or not there"),
]
AnyCheckpoint = CheckpointConfig | WanCheckpointConfig


def read_checkpoint_config(path: Path) -> AnyCheckpoint:
    """Parse a checkpoint's `config.json`; raises DataIntegrityError if it is missing, or naming the first wrong key."""
    data = read_json_object(existing_file(path))
    kind: type[AnyCheckpoint] = WanCheckpointConfig if family_of(data.get("model")) == "wan" else CheckpointConfig
    return read_config_of(path, kind)
