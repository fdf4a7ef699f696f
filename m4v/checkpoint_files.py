"""What lies in a checkpoint folder, and what may not (torch-free; `m4v.checkpoint` reads and writes it)."""

from __future__ import annotations

from pathlib import Path

from m4v.core.errors import DataIntegrityError

MODEL, EMA, CONFIG = "model.safetensors", "ema.safetensors", "config.json"
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
