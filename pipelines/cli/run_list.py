"""Lists of pipeline runs, stage runs and attempts, and the time that `--since` means."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from m4v.core.errors import InputError
from pipelines.cli.output import duration, print_json, print_rows, short
from pipelines.ledger import Ledger, PortRow, Status
from pipelines.ledger.listings import RunFilter

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str | None, now: datetime | None = None) -> datetime | None:
    """`90m`, `12h`, `7d`, `2w` ago, or an ISO date or time (UTC unless it says otherwise); raises InputError."""
    if text is None:
        return None
    if found := re.fullmatch(r"(\d+)([mhdw])", text.strip()):
        return (now or datetime.now(UTC)) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            "this is no time", value=text, where="--since", next_step="write 12h, 7d or 2026-11-21"
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def pipeline_runs(
    ledger: Ledger, recipe: str | None, status: Status | None, since: datetime | None, limit: int, json_: bool
) -> None:
    found = ledger.list_runs(RunFilter(recipe=recipe, status=status, since=since), limit=limit)
    if json_:
        print_json([asdict(r) | {"duration_s": r.duration_s} for r in found.rows])
        return
    print_rows(
        ("pipeline run", "recipe", "status", "started", "took", "stages", "trigger", "message"),
        [
            (r.pipeline_run_id, r.recipe, r.status, r.started_at, duration(r.duration_s), _outcomes(r.outcomes),
             r.trigger, r.message)
            for r in found.rows
        ],
        text=("stages", "message"),
    )  # fmt: skip
    if found.older:
        print(f"there are older ones: --limit {limit * 2}")


def _outcomes(outcomes: Any) -> str:
    return ", ".join(f"{count} {how}" for how, count in sorted(outcomes.items(), key=lambda item: str(item[0])))


def stage_runs(ledger: Ledger, stage: str, recipe: str | None, since: datetime | None, limit: int, json_: bool) -> None:
    found = ledger.runs(stage=stage, recipe=recipe, since=since, limit=limit)
    if json_:
        print_json([asdict(r) for r in found])
        return
    print_rows(
        ("run", "stage", "committed", "outputs", "exactness"),
        [(r.run_id, r.stage, r.committed_at, _ports(r.outputs), r.exactness) for r in found],
        text=("outputs",),
    )


def _ports(ports: tuple[PortRow, ...]) -> str:
    return ", ".join(f"{p.name} {short(p.artifact_id)}" for p in ports)


def attempts(
    ledger: Ledger, stage: str, status: Status, recipe: str | None, since: datetime | None, limit: int, json_: bool
) -> None:
    found = ledger.attempts(stage=stage, status=status, recipe=recipe, since=since, limit=limit)
    if json_:
        print_json([asdict(a) | {"duration_s": a.duration_s} for a in found])
        return
    print_rows(
        ("attempt", "node", "status", "exit", "started", "took", "host", "message"),
        [
            (a.attempt_id, a.node_id, a.status, a.exit_class, a.started_at, duration(a.duration_s), a.host, a.message)
            for a in found
        ],
        text=("message",),
    )
