"""Collections before anything is fetched or decoded: known kinds, what a location may hold, what a recipe lists."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from dataprep.sources.config import AdapterConfig, SourceConfig
from dataprep.sources.report import Report, validate
from dataprep.sources.sniff import Sniffed, sniff
from m4v.core.assets import resolve
from m4v.core.config import parse
from m4v.core.errors import M4VError
from m4v.core.storage import Storage
from pipelines.recipe import SourceEntry, load_recipe
from pipelines.recipe_files import SUFFIXES, shipped_recipes

ASSET, REMOTE = "asset:", "://"


@dataclass(frozen=True)
class Kind:
    """A kind of source; `keys` are those of its `adapter` section in a recipe."""

    kind: str
    purpose: str
    keys: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def known_kinds() -> list[Kind]:
    """In the order of the union that recipes accept; the purpose is the first sentence of the config's text."""
    models = get_args(get_args(AdapterConfig)[0])
    found = []
    for model in models:
        text = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())
        purpose = re.sub(r" \(see [^)]*\)", "", re.split(r"(?<=\w{3})\. ", text)[0]).rstrip(".")
        found.append(Kind(str(model.model_fields["kind"].default), purpose, tuple(model.model_fields)))
    return found


def is_location(text: str) -> bool:
    """Whether an argument names a place of files; otherwise it names a recipe."""
    if text in shipped_recipes() or Path(text).suffix in SUFFIXES:
        return False
    return Path(text).is_dir() or REMOTE in text or text.startswith(ASSET) or "/" in text


@dataclass(frozen=True)
class Found:
    """What a location may hold; `report` is of the likeliest kind that can be used, None without one."""

    location: str
    guesses: tuple[Sniffed, ...]
    report: Report | None
    snippet: str | None  # YAML of a recipe's source

    def to_json(self) -> dict[str, object]:
        return {
            "location": self.location,
            "guesses": [{**asdict(g), "adapter": g.adapter and dict(g.adapter)} for g in self.guesses],
            "report": self.report.to_json() if self.report else None,
            "recipe": self.snippet,
        }


def look_at(location: str, encoder_fps: float | None = None) -> Found:
    """Sniff a location and scan it as the likeliest kind, reading no media.

    Raises InputError when it is not there or cannot be used as that kind.
    """
    storage = Storage(resolve(location))
    guesses = tuple(sniff(storage))
    adapter = next((guess.adapter for guess in guesses if guess.adapter is not None), None)
    if adapter is None:
        return Found(location, guesses, None, None)
    name = re.sub(r"[^a-z0-9_-]+", "-", Path(location.rstrip("/")).name.lower()).strip("-") or "mine"
    name = name if name[0].isalpha() else f"s-{name}"
    entry = {"name": name, "location": location, "adapter": dict(adapter)}
    config = parse(SourceConfig, {"name": name, "adapter": adapter}, "what was sniffed")
    report = validate(config.adapter, storage, encoder_fps=encoder_fps)
    return Found(location, guesses, report, yaml.safe_dump({"sources": [entry]}, sort_keys=False))


@dataclass(frozen=True)
class SourceReport:
    """A recipe's source; `problem` in place of a report where the collection as a whole cannot be used."""

    entry: SourceEntry
    report: Report | None
    problem: M4VError | None

    def to_json(self) -> dict[str, object]:
        adapter = self.entry.adapter
        return {
            "name": self.entry.name, "kind": adapter.kind, "location": self.entry.location,
            "licence": adapter.licence, "terms": adapter.terms,
            "report": self.report.to_json() if self.report else None,
            "problem": self.problem.message if self.problem else None,
        }  # fmt: skip


def recipe_sources(recipe: str, overrides: Iterable[str] = (), encoder_fps: float | None = None) -> list[SourceReport]:
    """Scan every source of a recipe, reading no media; one that cannot be used does not hide the others."""
    return [_report(entry, encoder_fps) for entry in load_recipe(recipe, overrides).sources]


def _report(entry: SourceEntry, encoder_fps: float | None) -> SourceReport:
    try:
        if entry.location is None and entry.adapter.kind != "synthetic":
            from dataprep.sources import probe  # its error says how to name a location

            probe(entry.config, {})
        location = None if entry.location is None else Storage(resolve(entry.location))
        return SourceReport(entry, validate(entry.adapter, location, encoder_fps=encoder_fps), None)
    except M4VError as error:
        return SourceReport(entry, None, error)


def totals(reports: Iterable[Report]) -> dict[str, Any]:
    """Sums over several sources; GPU hours are null as soon as one source has none."""
    known = list(reports)
    gpu = [r.estimate.gpu_hours for r in known]
    return {
        "clips": sum(r.estimate.clips for r in known),
        "images": sum(r.estimate.images for r in known),
        "size_bytes": sum(r.estimate.size_bytes for r in known),
        "hours": round(sum(r.estimate.hours for r in known), 6),
        "to_fetch": sum(r.estimate.to_fetch for r in known),
        "rejected": sum(sum(r.rejected.values()) for r in known),
        "gpu_hours": sum(g for g in gpu if g is not None) if known and None not in gpu else None,
    }
