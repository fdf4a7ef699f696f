"""Cases that want to be taken up again: their grace is over, or they were stopped on the way."""

from __future__ import annotations

from typing import NamedTuple

from m4v.core.config import parse
from pipelines.ledger import Ledger, TakedownRow
from pipelines.membership import ClipSelector
from pipelines.takedown.policy import may_delete
from pipelines.takedown.receipt import CLOSED, RECEIPT

DUE = "its bytes are due"
STOPPED = "it was stopped on the way"


class OpenCase(NamedTuple):
    """A case with the selector to apply again, and why."""

    case: TakedownRow
    selector: ClipSelector
    why: str


def open_cases(ledger: Ledger) -> list[OpenCase]:
    """Cases on which `apply` has something to do now, oldest first; those that wait for their grace are left out."""
    found = []
    for case in ledger.takedowns():
        steps = ledger.takedown_steps(case.takedown_id)
        names = {step.step for step in steps}
        if CLOSED in names or "opened" not in names:
            continue  # done, or asked for by a release that did not carry cases out
        policy = next(step.facts["policy"] for step in steps if step.step == "opened")
        if RECEIPT in names and not may_delete(policy):
            continue
        selector = parse(ClipSelector, case.selector, f"takedown {case.takedown_id}")
        found.append(OpenCase(case, selector, DUE if RECEIPT in names else STOPPED))
    return found
