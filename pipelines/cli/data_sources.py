"""How `m4v data sources` prints: known kinds, what a location holds, what a recipe would list."""

from __future__ import annotations

from collections.abc import Sequence

from dataprep.sources.report import Report
from pipelines.cli.output import duration, print_rows, size
from pipelines.inspection.sources import Found, Kind, SourceReport, totals


def print_kinds(kinds: Sequence[Kind]) -> None:
    print_rows(("kind", "what", "keys"), [(k.kind, k.purpose, ", ".join(k.keys)) for k in kinds], text=("what", "keys"))


def print_found(found: Found) -> None:
    if not found.guesses:
        print(f"{found.location}: nothing is recognised; m4v data sources lists the kinds that there are")
        return
    print_rows(
        ("kind", "confidence", "why"), [(g.kind, f"{g.confidence:.0%}", g.why) for g in found.guesses], text=("why",)
    )
    if found.report is not None:
        print()
        _print_reports([(found.report.kind, found.report.kind, "-", found.report)])
        _print_totals([found.report])
        print(f"\nin a recipe:\n{(found.snippet or '').rstrip()}")


def print_recipe(reports: Sequence[SourceReport]) -> None:
    known = [(r.entry.name, r.entry.adapter.kind, r.entry.adapter.licence, r.report) for r in reports if r.report]
    _print_reports(known)
    _print_totals([report for *_, report in known])
    for source in reports:
        if source.problem is not None:
            print(f"{source.entry.name}: {source.problem.message}")


def _print_totals(reports: Sequence[Report]) -> None:
    sums = totals(reports)
    hours = duration(3600 * sums["hours"])
    gpu = f", about {sums['gpu_hours']:.3g} GPU-hours to encode" if sums["gpu_hours"] is not None else ""
    print(
        f"\n{sums['clips']} files or spans ({sums['images']} images), {size(sums['size_bytes'])}, {hours} of video "
        f"claimed, {sums['rejected']} rejected, {sums['to_fetch']} to fetch{gpu}"
    )


def _print_reports(known: Sequence[tuple[str, str, str, Report]]) -> None:
    print_rows(
        ("source", "kind", "rows", "usable", "images", "size", "video", "to fetch", "rejected", "licence"),
        [
            (name, kind, r.rows, r.accepted, r.estimate.images, size(r.estimate.size_bytes), _video(r),
             r.estimate.to_fetch, sum(r.rejected.values()), licence)
            for name, kind, licence, r in known
        ],
        text=("licence",),
    )  # fmt: skip
    rejected = [
        (name, reason, count, example.path or "-", example.row, example.detail)
        for name, _, _, r in known
        for reason, count in sorted(r.rejected.items(), key=lambda p: (-p[1], p[0]))
        for example in r.examples.get(reason, [])[:1]
    ]
    if rejected:
        print()
        print_rows(
            ("source", "reason", "rows", "for example", "row", "detail"), rejected, title="Rejected",
            text=("for example", "detail"),
        )  # fmt: skip


def _video(report: Report) -> str:
    """Hours that the collection claims; `+ n ?` are videos that claim none."""
    unknown = report.estimate.without_length
    claimed = duration(3600 * report.estimate.hours)
    return f"{claimed} + {unknown} ?" if unknown else claimed
