"""`m4v data sources RECIPE --download`: the downloads of a recipe's sources without a run, with a live line each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dataprep.download.collection import fetch_missing
from dataprep.download.state import DownloadState
from dataprep.sources import adapter_of
from dataprep.sources.config_base import Tables
from dataprep.sources.digests import cache_file
from m4v.core.assets import resolve
from m4v.core.errors import ConfigError
from m4v.core.storage import Storage
from pipelines.cli.output import print_rows, size
from pipelines.recipe import Recipe, SourceEntry, load_recipe


def download_sources(recipe_name: str, overrides: Iterable[str], *, again: bool) -> list[dict[str, Any]]:
    """Figures of the download of each source that has one; raises ConfigError when none has."""
    recipe = load_recipe(recipe_name, overrides)
    having = [
        (s, s.adapter) for s in recipe.sources if isinstance(s.adapter, Tables) and s.adapter.download is not None
    ]
    if not having:
        raise ConfigError(
            "no source of the recipe has a `download` section", where=recipe.name,
            next_step="add `download: {}` to the adapter of a source whose tables name files by URL",
        )  # fmt: skip
    return [_download(recipe, entry, config, again) for entry, config in having]


def _download(recipe: Recipe, entry: SourceEntry, config: Tables, again: bool) -> dict[str, Any]:
    if entry.location is None:
        raise ConfigError(
            "source has no location", value=entry.name, where="recipe sources",
            next_step=f"--set sources.{entry.name}.location=DIRECTORY",
        )  # fmt: skip
    location = Storage(resolve(entry.location))
    columns = (
        TextColumn(entry.name),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as live,
        DownloadState(location, cache_file().parent) as state,
    ):
        line = live.add_task("", total=None)

        def tell(done: float, total: float | None, unit: str, note: str) -> None:
            live.update(line, completed=done, total=total, description=note)

        adapter = adapter_of(entry.adapter)
        report = fetch_missing(adapter, config, location, state, seed=recipe.seed, tell=tell, again=again)
        failures = str(state.failures_uri)
    return {"source": entry.name, "location": location.uri, "failures": failures, **report.figures()}


def print_reports(reports: list[dict[str, Any]]) -> None:
    print_rows(
        ("source", "missing", "fetched", "failed", "failed before", "retries", "received", "why"),
        [
            (
                r["source"], r["wanted"], r["fetched"], sum(r["failed"].values()), r["skipped"], r["retries"],
                size(r["received_bytes"]), ", ".join(f"{n} {reason}" for reason, n in r["failed"].items()) or "-",
            )
            for r in reports
        ],
        text=("why",),
    )  # fmt: skip
    for report in reports:
        if report["failed"] or report["skipped"]:
            print(f"\nwhat failed, row by row: {report['failures']}")
