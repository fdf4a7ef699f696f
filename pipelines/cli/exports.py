"""`m4v ledger deliver|sinks` and `m4v lineage export`: what the ledger knows, in the words of other systems."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.storage import storage_faults, write_atomic
from pipelines.access import Role, command_actor, require
from pipelines.cli.ledger import ledger as ledger_verbs
from pipelines.cli.lineage import lineage as lineage_verbs
from pipelines.cli.output import JsonOption, print_json, print_rows
from pipelines.cli.runs import open_ledger
from pipelines.exports.config import SinkConfig
from pipelines.exports.delivery import Backoff, Delivered, deliver
from pipelines.exports.formats import Format, export
from pipelines.exports.sinks import open_sink
from pipelines.exports.state import SinkState, read_state, write_state
from pipelines.ledger import Ledger
from pipelines.settings import load_settings
from pipelines.workspace import Workspace

SinksArgument = Annotated[list[str] | None, typer.Argument(metavar="[SINK]...", help="Names of sinks; none: all.")]


def register(app: typer.Typer) -> None:
    """The verbs belong to groups that other modules registered."""
    ledger_verbs.command("deliver")(deliver_)
    ledger_verbs.command("sinks")(sinks_)
    lineage_verbs.command("export")(export_)


def deliver_(
    names: SinksArgument = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to go on trying a sink that fails or is busy.")] = 0.0,
    skip_: Annotated[
        int | None, typer.Option("--skip", help="First pass over this event, which the sink (name one) refuses.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Deliver waiting events to the sinks of the workspace's settings; for a scheduler, and after an outage.

    Ends with 30 while a sink is away and with 10 when one needs another setting; no event is lost by that.
    """
    workspace = Workspace.open()
    chosen = _chosen(workspace, names)
    if skip_ is not None and len(chosen) != 1:
        raise ConfigError("--skip is for one sink", value=len(chosen), next_step="name the sink")
    with Ledger.open(workspace.ledger_url) as ledger:
        if skip_ is not None:
            actor = command_actor(load_settings(workspace).access)
            require(actor, Role.OPERATOR, f"skip an event of sink {chosen[0].name}")
            ledger.skip_delivery(chosen[0].name, skip_, by=actor.name)
        results = _deliver_all(ledger, workspace, chosen, wait)
    if json_:
        print_json([_result_json(done) for done in results])
    else:
        rows = [(d.sink, d.events, d.waiting, _words(d)) for d in results]
        print_rows(("sink", "delivered", "waiting", "state"), rows, text=("state",))
    _raise_first(results)


def _deliver_all(ledger: Ledger, workspace: Workspace, chosen: list[SinkConfig], wait_s: float) -> list[Delivered]:
    """Every sink once, then those that may come back, with growing pauses, until `wait_s` have passed."""
    deadline, backoff = time.monotonic() + wait_s, Backoff()
    events = dict.fromkeys((c.name for c in chosen), 0)
    results: dict[str, Delivered] = {}
    open_ones, failures = chosen, 0
    while open_ones:
        for config in open_ones:
            done = deliver(ledger, config.name, lambda c=config: open_sink(c, ledger, workspace.home))  # type: ignore[misc]
            events[config.name] += done.events
            results[config.name] = done
            _remember(workspace, done)
        open_ones = [c for c in open_ones if results[c.name].may_retry or results[c.name].busy]
        failures += 1
        pause = backoff.pause_s(failures)
        if not open_ones or time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
    return [_with_events(results[c.name], events[c.name]) for c in chosen]


def _remember(workspace: Workspace, done: Delivered) -> None:
    if done.error is not None:
        failures = read_state(workspace, done.sink).failures + 1
        write_state(workspace, done.sink, SinkState.failed(failures, done))
    elif not done.busy:
        write_state(workspace, done.sink, SinkState())


def _with_events(done: Delivered, events: int) -> Delivered:
    return Delivered(done.sink, events, done.waiting, done.error, done.stopped_at, done.busy)


def _words(done: Delivered) -> str:
    if done.error is not None:
        return f"stopped at event {done.stopped_at}: {done.error.message}"
    return "another process delivers to it" if done.busy else "up to date"


def _result_json(done: Delivered) -> dict[str, object]:
    return {
        "sink": done.sink, "delivered": done.events, "waiting": done.waiting, "busy": done.busy,
        "stopped_at": done.stopped_at, "error": done.error.message if done.error else None,
    }  # fmt: skip


def _raise_first(results: list[Delivered]) -> None:
    """End with the class of the first fault that somebody must act on, else of the first that may pass."""
    failed = [d for d in results if d.error is not None]
    if not failed:
        return
    first = next((d for d in failed if not d.may_retry), failed[0])
    error = first.error
    assert error is not None
    what = f"{len(failed)} of {len(results)} sinks do not take events; {first.sink}: {error.what}"
    kind = InfrastructureError if first.may_retry else ConfigError
    raise kind(what, value=error.value, where=error.where or f"sink {first.sink}", next_step=error.next_step)


def sinks_(json_: JsonOption = False) -> None:
    """List the sinks of the workspace's settings, and how far each has come."""
    workspace = Workspace.open()
    chosen = _chosen(workspace, None)
    with open_ledger() as ledger:
        rows = [(c, ledger.outbox(c.name), read_state(workspace, c.name)) for c in chosen]
    if json_:
        print_json(
            [
                {"sink": c.name, "kind": c.kind, "delivered_seq": place.delivered_seq, "waiting": place.waiting,
                 "delivered_at": place.delivered_at, "failures": state.failures, "error": state.error,
                 "failed_at": state.failed_at}
                for c, place, state in rows
            ]
        )  # fmt: skip
        return
    print_rows(
        ("sink", "kind", "delivered", "waiting", "last", "state"),
        [(c.name, c.kind, p.delivered_seq, p.waiting, p.delivered_at, s.error or "ok") for c, p, s in rows],
        text=("state",),
    )


def _chosen(workspace: Workspace, names: list[str] | None) -> list[SinkConfig]:
    """The sinks of these names, in the order of the settings; raises ConfigError for a name that is none."""
    known = {c.name: c for c in load_settings(workspace).sinks}
    for name in names or ():
        if name not in known:
            there = ", ".join(known) or "none; add `sinks` to the workspace's settings"
            raise ConfigError("there is no such sink", value=name, next_step=f"sinks are: {there}")
    return [c for c in known.values() if not names or c.name in names]


def export_(
    identity: Annotated[str, typer.Argument(metavar="ID", help="Id of an artifact or run, or a unique prefix.")],
    format_: Annotated[Format, typer.Option("--format", help="What to write.")],
    output: Annotated[Path | None, typer.Option(help="File to write; none: standard output.")] = None,
    namespace: Annotated[str, typer.Option(help="OpenLineage namespace of jobs and datasets.")] = "m4v",
) -> None:
    """Write provenance or a card of an artifact, or the OpenLineage events of a run; same ledger, same bytes."""
    with open_ledger() as ledger:
        text = export(ledger, identity, format_, namespace=namespace)
    if output is None:
        sys.stdout.write(text)
        return
    with storage_faults(str(output)):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, text.encode())
    print(f"wrote {output}")
