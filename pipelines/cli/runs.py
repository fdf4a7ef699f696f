"""`m4v runs list|show|diff|rerun|drain|cancel|logs`: pipeline runs, stage runs and attempts of the ledger."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from m4v.core.errors import ConfigError, InputError
from pipelines.access import Actor, Role, command_actor, require
from pipelines.cli.output import JsonOption, duration, print_json
from pipelines.ledger import ArtifactRow, AttemptRow, Ledger, PipelineRunRow, RunRow, Status
from pipelines.settings import load_settings
from pipelines.workspace import Workspace

RunArgument = Annotated[
    str, typer.Argument(help="Id of a pipeline run, stage run or attempt, or a unique prefix of one.")
]
OneRun = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="Id of a pipeline run, stage run or attempt, or a unique prefix of one."),
]
EveryOption = Annotated[
    bool, typer.Option("--all", help="With --verify: every stage run of the ledger whose bytes stand.")
]
AnewOption = Annotated[
    bool, typer.Option("--anew", help="Begin again: do not go on with a verification that was stopped.")
]
TailOption = Annotated[int, typer.Option(help="Last lines of each log; 0: all.", min=0)]
ReasonOption = Annotated[str, typer.Option(help="Why, for the history.")]
LimitOption = Annotated[int, typer.Option(help="How many, newest first.", min=1)]

runs = typer.Typer(help="Pipeline runs, stage runs and attempts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(runs, name="runs")


def open_ledger() -> Ledger:
    return Ledger.open(Workspace.open().ledger_url)


@runs.command("list")
def list_(
    recipe: Annotated[str | None, typer.Option(help="Only runs of this recipe.")] = None,
    status: Annotated[
        Status | None, typer.Option(help="Only runs (with --stage: attempts) that stand so.", case_sensitive=False)
    ] = None,
    stage: Annotated[str | None, typer.Option(help="List stage runs of this stage instead.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Started since: a time in UTC (2026-11-21, 2026-11-21T18:00), or 90m, 12h, 7d ago."),
    ] = None,
    limit: LimitOption = 20,
    json_: JsonOption = False,
) -> None:
    """List pipeline runs, or with --stage its runs (with --status too: its attempts), newest first."""
    from pipelines.cli import run_list

    start = run_list.parse_since(since)
    with open_ledger() as ledger:
        if stage is None:
            run_list.pipeline_runs(ledger, recipe, status, start, limit, json_)
        elif status is None:
            run_list.stage_runs(ledger, stage, recipe, start, limit, json_)
        else:
            run_list.attempts(ledger, stage, status, recipe, start, limit, json_)


@runs.command("show")
def show(
    identity: RunArgument,
    config: Annotated[bool, typer.Option("--config", help="Print only the config, as YAML.")] = False,
    patch: Annotated[
        bool, typer.Option("--patch", help="Print only the uncommitted changes of the code that it started with.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Show a pipeline run, stage run or attempt: config, inputs, outputs, code, environment, times, attempts, metrics,
    verdicts, logs."""
    from pipelines.cli import run_show

    workspace = Workspace.open()
    with open_ledger() as ledger:
        row = ledger.resolve(identity)
        if isinstance(row, ArtifactRow):
            raise InputError("this is an artifact", value=identity, next_step=f"m4v artifacts show {identity}")
        if patch:
            run_show.print_patch(workspace, ledger, row)
        elif config:
            run_show.print_config(row)
        else:
            run_show.show(ledger, row, json_)


@runs.command("drain")
def drain(identity: RunArgument, reason: ReasonOption = "m4v runs drain", json_: JsonOption = False) -> None:
    """Ask a running pipeline run (or the stage of one attempt) to save its state and stop; the same m4v run resumes."""
    from pipelines.stopping import drain as request

    with open_ledger() as ledger:
        asked = request(ledger, identity, by=_operator("drain a run").name, reason=reason)
    if json_:
        print_json(asdict(asked))
        return
    print(f"asked to drain by {asked.requested_by}: it saves its state and stops; m4v runs show {identity}")


@runs.command("cancel")
def cancel(
    identity: RunArgument,
    reason: ReasonOption = "m4v runs cancel",
    grace: Annotated[float, typer.Option(help="Seconds to save state before it is killed.", min=0.0)] = 60.0,
    json_: JsonOption = False,
) -> None:
    """Drain a pipeline run, kill it when the time is up, and return once no process of it is left."""
    from pipelines.stopping import Cancellation

    with open_ledger() as ledger:
        by = _operator("cancel a run").name
        tell = (lambda _: None) if json_ else (lambda text: print(text, flush=True))
        stopped = Cancellation(ledger, identity, tell).run(by=by, reason=reason, grace_s=grace)
    if json_:
        print_json(stopped.to_json())
        return
    how = f"{stopped.killed} processes killed" if stopped.killed else "nothing had to be killed"
    print(f"run {stopped.pipeline_run_id} is gone: {stopped.status} after {duration(stopped.seconds)}, {how}")


def _operator(what: str) -> Actor:
    actor = command_actor(load_settings(Workspace.open()).access)
    require(actor, Role.OPERATOR, what)
    return actor


@runs.command("diff")
def diff(before: RunArgument, after: RunArgument, json_: JsonOption = False) -> None:
    """Say what differs between two pipeline runs or two stage runs: config, data, code, environment, weights,
    metrics, samples."""
    from pipelines.cli.run_diff import print_comparison  # comparing data brings DuckDB along
    from pipelines.compare import compare_runs

    workspace = Workspace.open()
    with open_ledger() as ledger:
        found = compare_runs(workspace, ledger, before, after)
    if json_:
        print_json(found.to_json())
        return
    print_comparison(found)


@runs.command("rerun")
def rerun(
    identity: OneRun = None,
    every: EveryOption = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Execute every stage again beside the record and compare the bytes.")
    ] = False,
    allow_code: Annotated[bool, typer.Option(help="Even if code or lock file differ from the record.")] = False,
    allow_machine: Annotated[bool, typer.Option(help="Even if device, kernels or threads differ.")] = False,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance instead of the dtype's.", min=0.0)] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance instead of the dtype's.", min=0.0)] = None,
    keep: Annotated[bool, typer.Option(help="Keep the work directories of stages that differ.")] = False,
    anew: AnewOption = False,
    json_: JsonOption = False,
) -> None:
    """Execute a pipeline run or a stage run again, from its recorded request.

    With --verify nothing is reused or published: the verdict on every file and tensor is recorded, and the exit code
    is 20 where one is not identical (with --rtol or --atol: not equal within them). Stopped, the same command goes on.
    Without it the recorded recipe is run anew: what is unchanged is a cache hit.
    """
    from pipelines.cli import rerun as verb  # the launcher and the comparison of files: only this verb needs them

    if (identity is None) != every or (every and not verify):
        raise ConfigError("name one RUN, or --all with --verify", next_step="m4v runs list, or m4v runs rerun --help")
    if not verify:
        assert identity is not None
        verb.run_again(identity, json_)
    verb.verify(identity, verb.options(allow_code, allow_machine, rtol, atol, keep, anew), json_)


@runs.command("logs")
def logs(identity: RunArgument, tail: TailOption = 0) -> None:
    """Print the logs of a stage run's attempts, oldest first."""
    workspace = Workspace.open()
    with open_ledger() as ledger:
        row = ledger.resolve(identity)
        if isinstance(row, PipelineRunRow):
            attempts = ledger.attempts(pipeline_run_id=row.pipeline_run_id, limit=None)
        elif isinstance(row, RunRow):
            attempts = ledger.attempts(stage_key=row.stage_key, limit=None)
        elif isinstance(row, AttemptRow):
            attempts = [row]
        else:
            assert isinstance(row, ArtifactRow)
            raise InputError("this is an artifact", value=identity, next_step=f"m4v lineage up {identity}")
    for attempt in reversed(attempts):
        log = workspace.attempt_file(attempt.log_path, attempt.stage_key, attempt.attempt_id)
        sys.stdout.write(f"==> attempt {attempt.attempt_id} of {attempt.node_id or attempt.stage}: {log}\n")
        if not log.is_file():
            sys.stdout.write("    (the log is not on this machine)\n")
            continue
        lines = log.read_text(errors="replace").splitlines()
        sys.stdout.write("\n".join(lines[-tail:] if tail else lines) + "\n")
