"""Work directories of verifications, below `rerun/` in the home: who works in each and what it reads, so that nobody
deletes its inputs and what a killed one left is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from m4v.core.storage import write_atomic
from pipelines.ledger.process import is_dead, process_token
from pipelines.processes import kill_leftovers

ROOT, OWNER, INPUTS = "rerun", "owner", "inputs.json"
ArtifactKey = tuple[str, str]  # (artifact id, kind)


@dataclass(frozen=True)
class RerunFolder:
    """`is_alive`: a verification works in it. `was_kept`: it ended, and was told to leave what differed."""

    path: Path
    is_alive: bool
    was_kept: bool
    inputs: tuple[ArtifactKey, ...]

    def remove(self) -> None:
        """Delete it, and end what a killed owner left running in it."""
        kill_leftovers(self.path)
        shutil.rmtree(self.path, ignore_errors=True)


def open_folder(home: Path, verification_id: str, inputs: Iterable[ArtifactKey]) -> Path:
    """A new directory of this process; its inputs are known before it counts as alive. A verification that goes on
    may find one that it left when it was stopped, to be looked at."""
    folder, number = home / ROOT / verification_id, 1
    while folder.exists():
        number += 1
        folder = home / ROOT / f"{verification_id}-{number}"
    folder.mkdir(parents=True)
    write_atomic(folder / INPUTS, json.dumps(sorted(set(inputs))).encode())
    write_atomic(folder / OWNER, process_token().encode())
    return folder


def close_folder(folder: Path, *, keep: bool) -> None:
    """Give the directory up; kept, it stays as long as scratch does."""
    if keep and any(path.is_dir() for path in folder.iterdir()):
        (folder / OWNER).unlink()
        return
    shutil.rmtree(folder, ignore_errors=True)


def rerun_folders(home: Path) -> list[RerunFolder]:
    """Every directory of a verification in this home, by age."""
    return [_read(path) for path in sorted((home / ROOT).glob("*")) if path.is_dir()]


def _read(path: Path) -> RerunFolder:
    owner, inputs = _text(path / OWNER), _text(path / INPUTS)
    keys = tuple((str(i), str(kind)) for i, kind in json.loads(inputs)) if inputs else ()
    return RerunFolder(path, bool(owner) and not is_dead(owner), not owner, keys)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # being made, or kept
