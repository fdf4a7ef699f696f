"""Every third-party model file of the product: where it comes from, where it belongs, how large, which licence.

`catalogue.json` beside this module holds the rows; what is not known stands as null and is never checked.
Files belong below one root, `M4V_WEIGHTS`, as `ROOT/<hub id>/<file>`: what `hf download ID --local-dir
ROOT/ID` or an rsync from another cluster leaves there is found.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from m4v.core.config import FrozenModel
from m4v.core.errors import InputError
from m4v.core.storage import check_relative

WeightsFormat = Literal[
    "pyramidflow_dit", "pyramidflow_vae", "t5_clip", "wan_diffusers", "wan_original", "state_dict", "in_place"
]
_HUB_ADDRESS = "https://huggingface.co/{hub}"


class CatalogueFile(FrozenModel):
    """One file of an entry. `file` is its name at the origin (`*` for shards that an index beside it names),
    `path` its place below the entry's folder when that differs. `size_bytes`, `sha256` and `md5` are facts to
    hold a copy to; `about_bytes` only says how much to download. `optional`: an import does without it."""

    file: str
    path: str | None = None
    size_bytes: int | None = Field(None, ge=0)
    about_bytes: int | None = Field(None, ge=0)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    optional: bool = False

    @property
    def place(self) -> str:
        """Path below the entry's folder."""
        return self.path or self.file

    @property
    def is_pattern(self) -> bool:
        return "*" in self.place

    @property
    def bytes_to_fetch(self) -> int | None:
        return self.size_bytes if self.size_bytes is not None else self.about_bytes


class CatalogueEntry(FrozenModel):
    """One model. `licence` None: its origin states none that we could read."""

    name: str
    format: WeightsFormat
    purpose: str
    hub: str | None = None
    url: str | None = None
    revision: str | None = None
    licence: str | None = None
    place: str = ""  # folder below the weights root; the hub id unless stated
    files: tuple[CatalogueFile, ...]

    @model_validator(mode="before")
    @classmethod
    def _default_place(cls, row: dict[str, object]) -> dict[str, object]:
        return {**row, "place": row.get("place") or row.get("hub") or ""}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hub is None and self.url is None:
            raise ValueError(f"{self.name} says neither hub id nor address")
        for path in (self.place, *(f.place for f in self.files)):
            check_relative(path)
        return self

    @property
    def importable(self) -> bool:
        """Can become a `weights` artifact; the others are read where they lie by an evaluator's own process."""
        return self.format != "in_place"

    @property
    def address(self) -> str:
        """Where a person downloads it."""
        return self.url or _HUB_ADDRESS.format(hub=self.hub)

    @property
    def bytes_to_fetch(self) -> int | None:
        """Sum over the files whose size is known; None when none is."""
        known = [f.bytes_to_fetch for f in self.files if f.bytes_to_fetch is not None]
        return sum(known) if known else None

    def folder(self, root: Path | None = None) -> Path:
        """Where its files are expected: below `root` (default: the weights root)."""
        return (root or weights_root()) / self.place

    @property
    def fetch_command(self) -> str:
        """How to bring the files there on a machine with network."""
        if self.hub is None:
            wanted = " and ".join(f"$M4V_WEIGHTS/{self.place}/{f.place}" for f in self.files)
            return f"download {self.url} so that {wanted} is there"
        first = self.files[0]
        folder = f"{self.place}/{first.place.removesuffix(first.file)}".rstrip("/")
        revision = f" --revision {self.revision}" if self.revision else ""
        includes = " ".join(f"--include {pattern}" for pattern in sorted({_include(f.file) for f in self.files}))
        return f"hf download {self.hub}{revision} {includes} --local-dir $M4V_WEIGHTS/{folder}"


def _include(file: str) -> str:
    return f"'{file.split('/')[0]}/*'" if "/" in file else f"'{file}'"


def weights_root() -> Path:
    """`M4V_WEIGHTS`, else `~/.cache/m4v/weights`."""
    return Path(os.environ.get("M4V_WEIGHTS") or Path.home() / ".cache" / "m4v" / "weights").expanduser()


@cache
def _read_catalogue() -> dict[str, CatalogueEntry]:
    rows = json.loads((Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8"))["entries"]
    found = {row["name"]: CatalogueEntry.model_validate(row) for row in rows}
    if len(found) != len(rows):
        raise ValueError("an entry stands twice in catalogue.json")
    return found


def entries() -> tuple[CatalogueEntry, ...]:
    """All entries in catalogue order."""
    return tuple(_read_catalogue().values())


def entry(name: str) -> CatalogueEntry:
    """The entry `name`; raises InputError with near names when there is none."""
    known = _read_catalogue()
    if name not in known:
        raise InputError("no such weights entry", value=name, next_step=_near(name, known))
    return known[name]


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)} (m4v weights list)"
