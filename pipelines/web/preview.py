"""The data preview: what a clip table or a dataset holds and why, on one self-contained HTML page.

Like the report it needs no network: pictures are `data:` URIs within a budget, and the page says what it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dataprep.curate_config import CurateConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.inspection.clip_table import KEPT, ClipTable, SourceYield
from pipelines.inspection.clips import read_funnel
from pipelines.inspection.quarantine import Held, counted, held_items, repair
from pipelines.inspection.targets import Target
from pipelines.inspection.whatif import WhatIf, stored_config, what_if
from pipelines.web.histograms import Histogram, histogram
from pipelines.web.media import MediaBudget
from pipelines.web.render import render
from pipelines.web.report import Tile
from pipelines.web.sections import clip_sheet, dataset
from pipelines.web.sections.curation import FunnelStep, funnel_steps

QUARANTINE_ROWS = 200
RECONSTRUCTIONS = 12
_RECONSTRUCTION_SHARE = 0.25  # of the media budget


@dataclass(frozen=True)
class Limits:
    """What the page embeds: `clips` cards and `media_mib` of pictures and videos together."""

    clips: int = 600
    media_mib: float = 24.0


@dataclass(frozen=True)
class ReasonRow:
    reason: str
    count: int
    next: str


@dataclass(frozen=True)
class Quarantine:
    rows: tuple[Held, ...]
    total: int
    reasons: tuple[ReasonRow, ...]


@dataclass(frozen=True)
class Curation:
    """What the page shows of a clip table."""

    target: Target
    table: ClipTable
    funnel: tuple[FunnelStep, ...]
    yields: tuple[SourceYield, ...]
    histograms: tuple[Histogram, ...]
    sheet: clip_sheet.ClipSheet
    rejects: clip_sheet.RejectMap
    config: CurateConfig | None
    tried: WhatIf | None


def build(
    named: Target, clips: Target | None, encoded: Target | None, limits: Limits, overrides: Sequence[str] = ()
) -> str:
    """The page as HTML. `named` is what was asked for: `clips`, or the dataset `encoded` from them. `overrides` are
    thresholds to try: the page then shows which clips change side.

    Raises ConfigError or InputError for overrides that cannot be tried.
    """
    if overrides and clips is None:
        raise InputError("no clips to try thresholds on", value=named.id[:12], next_step="name a clips artifact")
    budget = int(limits.media_mib * 2**20)
    videos = MediaBudget(int(_RECONSTRUCTION_SHARE * budget))
    data = dataset.gather(encoded.artifact, videos, RECONSTRUCTIONS) if encoded else None
    pictures = MediaBudget(budget - videos.embedded_bytes)
    held = held_items([t.artifact for t in (clips, encoded) if t is not None])
    curation = gather_curation(clips, pictures, limits.clips, held, overrides) if clips else None
    quarantine = gather_quarantine(held)
    return render(
        "preview/index.html.jinja",
        named=named, title="Dataset preview" if named.artifact.kind == ArtifactKind.DATASET else "Clips preview",
        curation=curation, dataset=data, quarantine=quarantine, tiles=_tiles(curation, data, quarantine),
        embedded_bytes=pictures.embedded_bytes + videos.embedded_bytes, left_out=pictures.left_out + videos.left_out,
        KEPT=KEPT,
    )  # fmt: skip


def gather_curation(
    target: Target, media: MediaBudget, wanted: int, held: Sequence[Held], overrides: Sequence[str]
) -> Curation:
    """What a page shows of a clip table: cards of at most `wanted` clips, pictures from `media`, thresholds tried.

    Raises ConfigError or InputError for overrides that cannot be tried.
    """
    table, config = ClipTable(target.artifact), stored_config(target)
    tried = what_if(target, table, overrides) if overrides else None
    if tried is not None:
        config = tried.config_then
    fates = tried.fates if tried else None
    sheet = clip_sheet.gather(table, media, wanted, fates)
    return Curation(
        target=target, table=table, funnel=funnel_steps(read_funnel(target.artifact)), yields=tuple(table.yields()),
        histograms=tuple(histogram(score) for score in table.scores(config.filters if config else None, fates)),
        sheet=sheet, rejects=clip_sheet.reject_map(sheet.groups, [(h.reason, h.source) for h in held]), config=config,
        tried=tried,
    )  # fmt: skip


def gather_quarantine(rows: Sequence[Held]) -> Quarantine:
    reasons = tuple(ReasonRow(reason, count, repair(reason)) for reason, count in counted(rows).items())
    return Quarantine(tuple(rows[:QUARANTINE_ROWS]), len(rows), reasons)


def _tiles(curation: Curation | None, data: dataset.Dataset | None, quarantine: Quarantine) -> list[Tile]:
    found = []
    if curation is not None:
        table = curation.table
        kept = int(table.kept.sum())
        share = f"{kept / table.clips:.0%}" if table.clips else "none"
        found.append(Tile("Clips kept", f"{kept:,}", f"of {table.clips:,} candidates, {share}"))
        found.append(Tile("Video kept", _hours(float(table.seconds[table.kept].sum())), _dropped(table)))
    if data is not None:
        found.append(Tile("Samples", f"{data.samples:,}", f"in {data.shards:,} shards, {len(data.buckets)} buckets"))
        found.append(Tile("Tokens", f"{data.tokens:,}", f"{data.captions:,} captions"))
        if data.psnr_mean is not None:
            found.append(Tile("Codec PSNR", f"{data.psnr_mean:.1f} dB", f"mean of {data.reconstructed} decoded clips"))
    note = ", ".join(f"{r.reason} {r.count:,}" for r in quarantine.reasons[:3]) or "nothing"
    found.append(Tile("Quarantined", f"{quarantine.total:,}", note))
    return found


def _dropped(table: ClipTable) -> str:
    return f"{_hours(float(table.seconds[~table.kept].sum()))} dropped"


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
