"""What the list of pipeline runs shows: filters from the address, rows with their progress, and which rows changed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError
from pipelines.ledger import AttemptRow, Ledger, NodeOutcome, Status
from pipelines.ledger.listings import ListedRun, RunFilter
from pipelines.ledger.types import iso, utc_now

PAGE_ROWS = 50
SINCE = {"1h": "last hour", "24h": "last day", "7d": "last 7 days", "30d": "last 30 days"}
_SPAN = re.compile(r"(\d{1,4})([hd])")
_DONE = (NodeOutcome.RAN, NodeOutcome.HIT, NodeOutcome.SKIPPED)


@dataclass(frozen=True)
class RunLine:
    """A row of the list. `seen` changes whenever something that the row shows does."""

    run: ListedRun
    running: tuple[AttemptRow, ...]

    @property
    def is_live(self) -> bool:
        return self.run.status == Status.RUNNING

    @property
    def done(self) -> int:
        """Stages that have their outputs."""
        return sum(self.run.outcomes.get(how, 0) for how in _DONE)

    @property
    def tally(self) -> str:
        """`12 ran, 4 reused, 1 failed`."""
        words = {NodeOutcome.HIT: "reused"}
        return ", ".join(
            f"{count} {words.get(how, str(how))}" for how in NodeOutcome if (count := self.run.outcomes.get(how))
        )

    @property
    def seen(self) -> str:
        shown: list[Any] = [str(self.run.status), self.run.message, {str(k): v for k, v in self.run.outcomes.items()}]
        shown += [[a.attempt_id, progress_of(a)] for a in self.running]
        return digest_json(shown)[:12]


def progress_of(attempt: AttemptRow) -> dict[str, Any]:
    """The part of an attempt's progress that people are shown, without its clocks."""
    found = attempt.progress or {}
    eta = found.get("eta_s")
    return {
        "done": found.get("done", 0), "total": found.get("total"), "unit": found.get("unit", ""),
        "note": found.get("note", ""), "eta_s": None if eta is None else round(float(eta)),
    }  # fmt: skip


def run_filter(recipe: str, status: str, since: str, text: str) -> RunFilter:
    """From the address of the page; raises ConfigError for a status or time that is none."""
    if status and status not in set(Status):
        raise ConfigError("there is no such status", value=status, next_step=f"one of {', '.join(Status)}")
    return RunFilter(
        recipe=recipe or None, status=Status(status) if status else None, since=_moment(since), text=text.strip()
    )


def _moment(since: str) -> datetime | None:
    """`24h`, `7d`, or an ISO date or time (UTC unless it says otherwise)."""
    if not since.strip():
        return None
    if match := _SPAN.fullmatch(since.strip()):
        count, unit = int(match[1]), match[2]
        return utc_now() - (timedelta(hours=count) if unit == "h" else timedelta(days=count))
    try:
        at = datetime.fromisoformat(since.strip())
    except ValueError:
        raise ConfigError("this is no time", value=since, next_step="use 24h, 7d or 2026-11-21") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def lines(ledger: Ledger, runs: Iterable[ListedRun]) -> list[RunLine]:
    """Rows with what is running in them now."""
    runs = list(runs)
    live = [r.pipeline_run_id for r in runs if r.status == Status.RUNNING]
    attempts = ledger.live_attempts(live) if live else []
    return [RunLine(r, tuple(a for a in attempts if a.pipeline_run_id == r.pipeline_run_id)) for r in runs]


def changed(ledger: Ledger, shown: Iterable[str]) -> list[RunLine]:
    """Rows of a page that are not any more as the page shows them; each of `shown` is `RUN_ID.SEEN`."""
    seen = dict(s.partition(".")[::2] for s in shown)
    now = lines(ledger, ledger.listed_runs(seen)) if seen else []
    return [line for line in now if line.seen != seen[line.run.pipeline_run_id]]


def count_newer(ledger: Ledger, wanted: RunFilter, newest: str) -> int:
    """How many runs that fit the filter began since the newest one shown; at most one page of them."""
    return len(ledger.list_runs(wanted, before=newest, limit=PAGE_ROWS).rows)


def describe(wanted: RunFilter) -> str:
    """The filter in words, for the page's status line."""
    parts = [f"of recipe {wanted.recipe}"] if wanted.recipe else []
    parts += [f"that {wanted.status}"] if wanted.status else []
    parts += [f"since {iso(wanted.since)[:16].replace('T', ' ')} UTC"] if wanted.since else []
    parts += [f"with “{wanted.text}”"] if wanted.text else []
    return " ".join(parts)
