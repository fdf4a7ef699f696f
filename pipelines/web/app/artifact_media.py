"""Pictures, videos and curves that an artifact holds, as addresses and geometry for the pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from m4v.core.artifacts import Artifact, ArtifactKind, Manifest
from pipelines.ledger import ArtifactRow
from pipelines.web.app.streams import manifest_of
from pipelines.web.charts import LineChart
from pipelines.web.sections.inputs import read_json
from pipelines.web.sections.training import (
    METRICS,
    Change,
    change_of,
    loss_chart,
    losses_of,
    other_charts,
    read_metrics,
    skipped_steps,
)

SHOWN = 12
_SAMPLES, _RECONSTRUCTIONS = "samples.json", "reconstructions.json"
_VIDEOS, _PICTURES = (".mp4",), (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class MediaItem:
    """A video or picture; `caption` says what it shows, `facts` the little that is known beside it."""

    address: str
    is_video: bool
    caption: str
    facts: tuple[str, ...] = ()
    ratio: str = "auto"


@dataclass(frozen=True)
class Gallery:
    items: tuple[MediaItem, ...]
    total: int


@dataclass(frozen=True)
class Curves:
    """Loss and other measures by step, of one checkpoint."""

    steps: int
    change: Change
    loss: LineChart
    others: tuple[tuple[str, LineChart, Change], ...]
    skipped: tuple[tuple[int, str], ...] = ()  # steps that took no update, and why


def address_of_file(row: ArtifactRow, path: str) -> str:
    return f"/artifacts/{row.artifact_id}/files/{path}"


def gallery(row: ArtifactRow, cache: Path, first: int = 0, shown: int = SHOWN) -> Gallery:
    """`shown` of the artifact's videos or pictures from number `first` on."""
    items = _described(row, cache)
    return Gallery(items[first : first + shown], len(items))


def curves(row: ArtifactRow, cache: Path) -> Curves | None:
    """None for anything but a checkpoint that was trained."""
    if row.kind != ArtifactKind.CHECKPOINT or METRICS not in _paths(manifest_of(row)):
        return None
    return _curves(row.uri, row.artifact_id, row.kind, cache)


@lru_cache(64)
def _curves(uri: str, artifact_id: str, kind: ArtifactKind, cache: Path) -> Curves | None:
    rows = read_metrics(Artifact(uri, artifact_id, kind, cache))
    loss = loss_chart("training", rows)
    if loss is None:
        return None
    change = change_of([value for _, value in losses_of(rows)])
    return Curves(len(rows), change, loss, other_charts("training", rows), skipped_steps(rows))


def _paths(manifest: Manifest) -> set[str]:
    return {f.path for f in manifest.files}


def _described(row: ArtifactRow, cache: Path) -> tuple[MediaItem, ...]:
    """Every video and picture, with captions where a table of the artifact has them."""
    paths = _paths(manifest_of(row))
    if _SAMPLES in paths:
        return _samples(row, cache)
    if _RECONSTRUCTIONS in paths:
        return _reconstructions(row, cache)
    media = sorted(p for p in paths if p.lower().endswith(_VIDEOS + _PICTURES))
    return tuple(MediaItem(address_of_file(row, p), p.lower().endswith(_VIDEOS), p) for p in media)


def _samples(row: ArtifactRow, cache: Path) -> tuple[MediaItem, ...]:
    table = _table(row, cache, _SAMPLES)
    return tuple(
        MediaItem(
            address_of_file(row, str(v["file"])), True, str(v.get("prompt", "")),
            ("seed not known" if v.get("seed") is None else f"seed {v['seed']}",
             f"{v.get('frames')} frames at {v.get('fps')} fps"),
            f"{v.get('width', 1)} / {v.get('height', 1)}",
        )
        for v in table.get("videos", [])
    )  # fmt: skip


def _reconstructions(row: ArtifactRow, cache: Path) -> tuple[MediaItem, ...]:
    table = _table(row, cache, _RECONSTRUCTIONS)
    return tuple(
        MediaItem(
            address_of_file(row, str(c["file"])), str(c["file"]).endswith(_VIDEOS), str(c.get("caption", "")),
            ("original left, decoded right", f"PSNR {c.get('psnr_db')} dB"), f"{2 * int(c['width'])} / {c['height']}",
        )
        for c in table.get("clips", [])
    )  # fmt: skip


def _table(row: ArtifactRow, cache: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = read_json(Artifact(row.uri, row.artifact_id, row.kind, cache), name)
    return found
