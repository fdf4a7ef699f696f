"""The data's way: sources, funnel, clips kept and dropped with their reasons, quarantine, reconstructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from m4v.codec.shape import TEMPORAL, pixel_frames
from m4v.core.artifacts import Artifact
from m4v.core.asset_catalog import ASSETS
from pipelines.web.config import ReportConfig
from pipelines.web.facts import RunFacts
from pipelines.web.media import MediaBudget
from pipelines.web.sections.inputs import ReportInputs, Row, read_json, read_rows

_CLIP_COLUMNS = [
    "clip_id", "source", "source_id", "path", "media", "start_us", "end_us", "frames", "fps", "width", "height",
    "captions", "kept", "drop_rule", "duplicate_of", "licence",
]  # fmt: skip


@dataclass(frozen=True)
class SourceRow:
    name: str
    kind: str
    licence: str
    terms: str
    credits: tuple[str, ...]
    files: int
    rejected: int
    artifact_id: str


@dataclass(frozen=True)
class FunnelStep:
    """`dropped` (reason, count), largest first; shares are of the largest step that counts the same `unit`."""

    step: str
    unit: str
    entered: int
    left: int
    dropped: tuple[tuple[str, int], ...]
    entered_share: float
    left_share: float


@dataclass(frozen=True)
class ClipCard:
    clip_id: str
    caption: str
    where: str
    preview: str | None
    note: str


@dataclass(frozen=True)
class DropGroup:
    rule: str
    count: int
    examples: tuple[ClipCard, ...]


@dataclass(frozen=True)
class Reconstruction:
    """A clip beside what its latents decode to, in one video `width` x `height`."""

    clip_id: str
    caption: str
    source: str
    psnr_db: float
    uri: str | None
    width: int
    height: int


@dataclass(frozen=True)
class Curation:
    sources: tuple[SourceRow, ...]
    funnel: tuple[FunnelStep, ...]
    groups: tuple[DropGroup, ...]
    kept: tuple[ClipCard, ...]
    candidates: int
    kept_count: int
    quarantine: tuple[Row, ...]
    quarantine_count: int
    quarantine_reasons: tuple[tuple[str, int], ...]
    licences: tuple[tuple[str, int], ...]
    reconstructions: tuple[Reconstruction, ...]
    psnr_mean: float | None
    psnr_count: int
    samples: int
    buckets: tuple[tuple[str, int], ...]


def gather(inputs: ReportInputs, facts: RunFacts, media: MediaBudget, config: ReportConfig) -> Curation:
    clips_artifact, dataset = inputs.get("clips"), inputs.get("dataset")
    clips = read_rows(clips_artifact, "clips.parquet", _CLIP_COLUMNS) if clips_artifact else []
    kept = [c for c in clips if c["kept"]]
    quarantine = [r for a in (clips_artifact, dataset) if a for r in read_rows(a, "quarantine.parquet")]
    if clips_artifact is None:  # curation takes over what the sources refused
        quarantine += [r for source in inputs.sources for r in _rejected_rows(source)]
    reconstructions, psnr = _reconstructions(dataset, media, config.reconstructions)
    groups = _groups(clips, clips_artifact, media, config.rejected)
    index = read_rows(dataset, "index.parquet", ["bucket_t", "bucket_h", "bucket_w"]) if dataset else []
    stride = _time_stride(dataset)
    return Curation(
        sources=tuple(_source(s, facts) for s in inputs.sources),
        funnel=funnel_steps(read_json(clips_artifact, "funnel.json")) if clips_artifact else (),
        groups=groups,
        kept=tuple(_card(c, clips_artifact, media, "") for c in spread(kept, config.kept)),
        candidates=len(clips),
        kept_count=len(kept),
        quarantine=tuple(quarantine[: config.quarantined]),
        quarantine_count=len(quarantine),
        quarantine_reasons=_counted(r["reason"] for r in quarantine),
        licences=_counted(c["licence"] for c in kept),
        reconstructions=reconstructions,
        psnr_mean=sum(psnr) / len(psnr) if psnr else None,
        psnr_count=len(psnr),
        samples=len(index),
        buckets=_counted(_bucket(row, stride) for row in index),
    )


def _time_stride(dataset: Artifact | None) -> int:
    """Frames that share a latent of the dataset's codec; older datasets do not say, and had one kind."""
    if dataset is None or "dataset.json" not in dataset.names():
        return TEMPORAL
    return int(read_json(dataset, "dataset.json").get("codec", {}).get("time_stride", TEMPORAL))


def _bucket(row: Row, time_stride: int) -> str:
    frames = pixel_frames(row["bucket_t"], time_stride)
    return f"{frames} frame{'s' if frames > 1 else ''}, {8 * row['bucket_h']}×{8 * row['bucket_w']}"


def _counted(values: Iterable[object]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(str(v) for v in values).items(), key=lambda pair: (-pair[1], pair[0])))


def spread(rows: Sequence[Row], wanted: int) -> list[Row]:
    """At most `wanted` rows, evenly over the table, so that no source fills the page alone."""
    if len(rows) <= wanted:
        return list(rows)
    return [rows[i * len(rows) // wanted] for i in range(wanted)]


def _source(artifact: Artifact, run: RunFacts) -> SourceRow:
    facts = read_json(artifact, "source.json")
    paths = [str(row["path"]) for row in read_rows(artifact, "listing.parquet", ["path"])]
    return SourceRow(
        name=str(facts["name"]), kind=str(facts["kind"]), licence=str(facts["licence"]),
        terms=str(facts.get("terms") or ""), credits=asset_credits(run.location(str(facts["name"])), paths),
        files=len(paths),
        rejected=len(read_rows(artifact, "rejected.parquet", ["path"])), artifact_id=artifact.id,
    )  # fmt: skip


def asset_credits(location: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Credits that the asset catalogue asks for, of the listed files of an `asset:` location."""
    if not location.startswith("asset:"):
        return ()
    folder = location.removeprefix("asset:").rstrip("/")
    known = {file.path: file for file in ASSETS.values()}
    files = [known[f"{folder}/{path}"] for path in paths if f"{folder}/{path}" in known]
    return tuple(sorted({f"{file.credit} ({file.licence})" for file in files}))


def _rejected_rows(artifact: Artifact) -> list[Row]:
    """Rows that a source refused, in the columns of the quarantine table."""
    name = str(read_json(artifact, "source.json")["name"])
    return [
        {"source": name, "source_id": "", "step": "source", "path": r["path"], "reason": r["reason"],
         "detail": f"row {r['row']}: {r['detail']}" if r.get("row") is not None else r["detail"]}
        for r in read_rows(artifact, "rejected.parquet")
    ]  # fmt: skip


def funnel_steps(steps: Sequence[Row]) -> tuple[FunnelStep, ...]:
    most: dict[str, int] = {}
    for step in steps:
        most[step["unit"]] = max(most.get(step["unit"], 1), int(step["in"]))
    return tuple(
        FunnelStep(
            step=str(s["step"]), unit=str(s["unit"]), entered=int(s["in"]), left=int(s["out"]),
            dropped=tuple(sorted(s["dropped_by_reason"].items(), key=lambda p: (-p[1], p[0]))),
            entered_share=int(s["in"]) / most[s["unit"]], left_share=int(s["out"]) / most[s["unit"]],
        )
        for s in steps
    )  # fmt: skip


def _groups(clips: Sequence[Row], artifact: Artifact | None, media: MediaBudget, shown: int) -> tuple[DropGroup, ...]:
    dropped = [c for c in clips if not c["kept"]]
    return tuple(
        DropGroup(
            rule=rule,
            count=count,
            examples=tuple(
                _card(c, artifact, media, f"copy of {c['duplicate_of'][:10]}" if c.get("duplicate_of") else "")
                for c in spread([c for c in dropped if str(c["drop_rule"]) == rule], shown)
            ),
        )
        for rule, count in _counted(c["drop_rule"] for c in dropped)
    )


def _caption(clip: Row) -> str:
    captions = clip.get("captions") or []
    return str(captions[0]) if captions else ""


def _card(clip: Row, artifact: Artifact | None, media: MediaBudget, note: str) -> ClipCard:
    preview = f"previews/{clip['clip_id']}.jpg"
    present = artifact is not None and preview in artifact.names(preview)
    where = f"{clip['source']} · {clip['path']}"
    if clip["media"] == "video":
        where += f" · {clip['start_us'] / 1e6:.1f} to {clip['end_us'] / 1e6:.1f} s"
    return ClipCard(
        clip_id=clip["clip_id"], caption=_caption(clip), where=where,
        preview=media.embed(artifact.path(preview)) if artifact is not None and present else None, note=note,
    )  # fmt: skip


def _reconstructions(
    dataset: Artifact | None, media: MediaBudget, shown: int
) -> tuple[tuple[Reconstruction, ...], list[float]]:
    if dataset is None or "reconstructions.json" not in dataset.names():
        return (), []
    rows: list[Row] = read_json(dataset, "reconstructions.json")["clips"]
    found = [
        Reconstruction(
            clip_id=row["clip_id"], caption=row["caption"], psnr_db=row["psnr_db"], source=row["source"],
            uri=media.embed(dataset.path(row["file"])), width=2 * row["width"], height=row["height"],
        )
        for row in rows[:shown]
    ]  # fmt: skip
    return tuple(found), [float(row["psnr_db"]) for row in rows]
