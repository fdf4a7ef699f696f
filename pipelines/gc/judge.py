"""Which artifacts are reachable from a root, and from which: a pure function of the ledger's facts.

A root keeps itself and everything that it was made from, through any number of runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger.reach_facts import Key, ReachArtifact, ReachFacts
from pipelines.settings import RetentionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An artifact whose bytes lie in the store, and why they stay or may go. `root`: the artifact that needs it."""

    artifact_id: str
    kind: str
    size_bytes: int
    uri: str
    used_at: datetime
    kept: bool
    why: str
    root: str | None = None


def judge(facts: ReachFacts, retention: RetentionConfig, now: datetime, store_uri: str) -> list[Judged]:
    """Every artifact that is there, those that may go first, longest unused first."""
    roots = find_roots(facts, retention, now, store_uri)
    needed = _closure(facts, roots)
    judged = []
    for key, row in facts.artifacts.items():
        if row.deletion is not None:
            continue
        kept, root = key in needed, needed.get(key)
        why = _why_kept(facts, roots, key, root) if root is not None else _why_not(retention, row)
        judged.append(
            Judged(
                artifact_id=row.artifact_id, kind=row.kind, size_bytes=row.size_bytes, uri=row.uri,
                used_at=row.used_at, kept=kept, why=why, root=root[0] if root is not None and root != key else None,
            )
        )  # fmt: skip
    return sorted(judged, key=lambda j: (j.kept, j.used_at, j.artifact_id, j.kind))


def resumable_since(retention: RetentionConfig, now: datetime) -> datetime:
    """Interrupted pipeline runs that began since then may be resumed from their state."""
    return now - timedelta(days=retention.state_days)


def find_roots(facts: ReachFacts, retention: RetentionConfig, now: datetime, store_uri: str) -> dict[Key, str]:
    """Artifacts that are kept for their own sake, each with its first reason; the weightiest reasons come first."""
    roots: dict[Key, str] = {}

    def add(keys: Iterable[Key], why: str) -> None:
        for key in keys:
            if key in facts.artifacts:
                roots.setdefault(key, why)

    for entry in facts.entries:
        if entry.age < retention.promotions:
            place = "names it" if entry.age == 0 else f"named it in entry {entry.seq}"
            add([entry.artifact], f"channel {entry.channel} {place}")
            gate = [(entry.gate, str(ArtifactKind.SCORES))] if entry.gate else []
            add(gate, f"verdict on what channel {entry.channel} names")
    for key, channel in facts.requests:
        add([key], f"its promotion to {channel} waits for approval")
    for key, by, reason in facts.pins:
        add([key], f"pinned by {by}" + (f": {reason}" if reason else ""))
    for key, case in facts.cited:
        add([key], f"takedown {case} is at work on it")
    for key, verification in facts.verified:
        add([key], f"verification {verification} reads it")
    for run in facts.runs:
        if run.is_alive:
            used = facts.outputs.get(run.pipeline_run_id, set()) | facts.holds.get(run.pipeline_run_id, set())
            add(sorted(used), f"in use by pipeline run {run.pipeline_run_id} ({run.recipe})")
        elif run.is_resumable:
            why = f"pipeline run {run.pipeline_run_id} ({run.recipe}) was interrupted and may be resumed"
            add(sorted(facts.outputs.get(run.pipeline_run_id, set())), why)
    for run in facts.runs:
        if run.rank <= retention.runs:
            why = f"of pipeline run {run.pipeline_run_id}, one of the last {retention.runs} of {run.recipe}"
            add(sorted(facts.outputs.get(run.pipeline_run_id, set())), why)
    cutoff = now - timedelta(hours=retention.grace_hours)
    for key, row in facts.artifacts.items():
        if row.kind in retention.kinds:
            add([key], f"artifacts of kind {row.kind} are always kept")
        elif row.used_at > cutoff:
            add([key], f"used {row.used_at:%Y-%m-%d %H:%M} UTC, within {retention.grace_hours:g} h")
        elif not row.uri.startswith(f"{store_uri}/"):
            add([key], "lies outside this store")
    return roots


def _closure(facts: ReachFacts, roots: dict[Key, str]) -> dict[Key, Key]:
    """Everything reachable, with the root that was first to reach it. Nearest roots first: a root names itself."""
    reached: dict[Key, Key] = {key: key for key in roots}
    waiting = deque(roots)
    while waiting:
        key = waiting.popleft()
        for source in sorted(facts.made_from.get(key, ())):
            if source not in reached:
                reached[source] = reached[key]
                waiting.append(source)
    return reached


def _why_kept(facts: ReachFacts, roots: dict[Key, str], key: Key, root: Key) -> str:
    if root == key:
        return roots[key]
    return f"{facts.artifacts[root].kind} {root[0][:12]} was made from it ({roots[root]})"


def _why_not(retention: RetentionConfig, row: ReachArtifact) -> str:
    return (
        f"no channel, pin, run in flight, takedown or one of the last {retention.runs} runs of a recipe needs it; "
        f"last used {row.used_at:%Y-%m-%d %H:%M} UTC"
    )
