"""What lies in a checkpoint folder, and what may not (torch-free; `m4v.checkpoint` reads and writes it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import write_atomic

MODEL, EMA, CONFIG = "model.safetensors", "ema.safetensors", "config.json"
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
ConfigT = TypeVar("ConfigT", bound=FrozenModel)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_pickles(directory: Path) -> None:
    """Raises DataIntegrityError naming a pickled file in a checkpoint's folder: reading one can run code."""
    names = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    if found := [name for name in names if name.endswith(PICKLES)]:
        raise DataIntegrityError(
            "checkpoint folder holds a pickled file, which could run code when read",
            value=found[0],
            where=str(directory),
            next_step=f"take weights in safetensors format ({MODEL}) and remove the pickled file",
        )


def existing_file(path: Path) -> Path:
    """`path`; raises DataIntegrityError, naming it, if there is no such file."""
    if not path.is_file():
        raise DataIntegrityError("checkpoint has no such file", value=path.name, where=str(path.parent))
    return path


def read_config_of(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Parse a checkpoint's `config.json`; raises DataIntegrityError if it is missing, or naming the first wrong key."""
    try:
        return kind.model_validate_json(existing_file(path).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, reason = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise DataIntegrityError(
            f"checkpoint configuration is not valid: {key or '(root)'}: {reason}", where=str(path)
        ) from None


def write_config(directory: Path, config: FrozenModel) -> None:
    """Write a checkpoint's `config.json`; equal configs give equal bytes."""
    write_atomic(directory / CONFIG, json.dumps(config.canonical(), indent=1, sort_keys=True).encode())


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in a published file; raises DataIntegrityError when it holds none."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:  # what is not UTF-8, too
        raise DataIntegrityError(f"{path.name} is not valid JSON ({error})", where=str(path)) from None
    if not isinstance(data, dict):
        raise DataIntegrityError(f"{path.name} does not hold an object", where=str(path))
    return data


def file_facts(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; none when it has no readable header (who loads the tensors tells)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _LONGEST_HEADER else {}
    except (OSError, ValueError):
        return {}
    facts = header.get("__metadata__") if isinstance(header, dict) else None
    return {str(key): str(value) for key, value in facts.items()} if isinstance(facts, dict) else {}
