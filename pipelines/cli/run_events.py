"""What happened to attempts while they were watched, for `m4v runs show`: jobs, starts, hangs, nodes left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cli.output import print_rows
from pipelines.ledger import AttemptRow, Ledger
from pipelines.ledger.supervision import ATTACHED, EXCLUDED, HUNG, STARTED, SUBMITTED


def supervision_json(ledger: Ledger, attempts: Sequence[AttemptRow]) -> list[dict[str, Any]]:
    """Events of the attempts, oldest first."""
    found = ledger.supervision([a.attempt_id for a in attempts])
    return [{"at": e.at, "event": e.kind, "attempt_id": e.subject, "facts": e.payload} for e in found]


def print_supervision(ledger: Ledger, attempts: Sequence[AttemptRow]) -> None:
    """Nothing at all where nothing happened."""
    found = ledger.supervision([a.attempt_id for a in attempts])
    if not found:
        return
    print("\nsupervision")
    rows = [(e.at, e.subject, e.kind.partition(".")[2], event_words(e.kind, e.payload)) for e in found]
    print_rows(("at", "attempt", "event", "what"), rows, text=("what",))


def event_words(kind: str, facts: Mapping[str, Any]) -> str:
    """One event in words."""
    if kind == SUBMITTED:
        left_out = f", without {', '.join(facts['exclude'])}" if facts.get("exclude") else ""
        return f"job {facts['job_id']}{left_out}"
    if kind == ATTACHED:
        return f"job {facts['job_id']}, submitted by attempt {facts['submitted_by']}"
    if kind == STARTED:
        place = f"job {facts['job_id']}, start {facts['start']} on {', '.join(facts['nodes'])}"
        note = f" ({facts['note']})" if facts.get("note") else ""
        return f"{place}: {facts['ended']}{note}" if facts["ended"] else place
    if kind == HUNG:
        ranks = ", ".join(map(str, facts["ranks"]))
        return f"no step for {facts['silent_s']:.0f} s after step {facts['step']}, rank {ranks}; stacks.*.txt"
    if kind == EXCLUDED:
        return "; ".join(f"{n} failed {f['failures']} times: {f['last']}" for n, f in facts["nodes"].items())
    return str(dict(facts))
