"""`import.json` of imported samples: which file each video was, and what was left out and why."""

from __future__ import annotations

from typing import Literal

from eval.records import Origin
from m4v.core.config import FrozenModel

IMPORT = "import.json"


class ImportedVideo(FrozenModel):
    """`file` in the artifact, `imported_as` in the folder; the bytes are the same."""

    file: str
    imported_as: str
    sha256: str
    size_bytes: int
    codec: str


class Left(FrozenModel):
    """A file that was not taken, or that should have been there."""

    file: str
    reason: str


class ImportRecord(FrozenModel):
    """`left_out_prompts`: how many prompts the samples lack because of what is in `left`."""

    schema_version: int = 1
    origin: Origin
    names: Literal["prompt", "index", "map"]
    videos: tuple[ImportedVideo, ...]
    left: tuple[Left, ...] = ()
    left_out_prompts: int = 0
