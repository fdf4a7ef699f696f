"""`m4v takedown finish`: what a schedule calls, so that no case waits for a person to remember it."""

from __future__ import annotations

from typing import Annotated

import typer

from m4v.core.errors import M4VError
from pipelines.access import command_actor
from pipelines.cli.output import JsonOption, print_json, print_rows
from pipelines.cli.takedown import _launcher, _tell, takedown
from pipelines.ledger import Ledger
from pipelines.settings import load_settings
from pipelines.takedown.apply import DRAIN_WAIT_S, TakedownRun
from pipelines.takedown.due import open_cases
from pipelines.takedown.policy import Policy
from pipelines.workspace import Workspace


@takedown.command("finish")
def finish(
    drain_wait: Annotated[
        float, typer.Option(min=0, help="Seconds that running work may take to stop.")
    ] = DRAIN_WAIT_S,
    json_: JsonOption = False,
) -> None:
    """Take up every case whose grace is over or that was stopped on the way, each by its own policy; for a schedule.
    Where one cannot be finished the others are all the same, and the exit code is that of the first."""
    workspace = Workspace.open()
    told: list[dict[str, str]] = []
    first: M4VError | None = None
    with Ledger.open(workspace.ledger_url) as ledger:
        actor = command_actor(load_settings(workspace).access)
        work = TakedownRun(ledger, workspace, _launcher(), actor, drain_wait_s=drain_wait, tell=_tell)
        for case, selector, why in open_cases(ledger):
            outcome = {"takedown_id": case.takedown_id, "why": why, "bytes": "", "receipt": "", "problem": ""}
            try:
                done = work.apply(selector, case.reason, Policy())  # a case keeps the policy it was opened with
                outcome |= {"bytes": str(done.receipt["deletion"]), "receipt": done.receipt_uri}
            except M4VError as error:
                first = first or error
                outcome["problem"] = error.message
            told.append(outcome)
    if json_:
        print_json(told)
    elif told:
        print_rows(list(told[0]), [list(one.values()) for one in told], text=("problem",))
    else:
        print("no case is due, and none was stopped on the way")
    if first is not None:
        raise first
