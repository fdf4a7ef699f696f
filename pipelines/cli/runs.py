"""`m4v runs list|show|logs`: pipeline runs, stage runs and attempts of the ledger."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from m4v.core.errors import InputError
from pipelines.cli.output import Id, JsonOption, duration, print_facts, print_json, print_rows, short
from pipelines.ledger import ArtifactRow, AttemptRow, Ledger, PipelineRunRow, RunRow
from pipelines.workspace import Workspace

RunArgument = Annotated[
    str, typer.Argument(help="Id of a pipeline run, stage run or attempt, or a unique prefix of one.")
]
TailOption = Annotated[int, typer.Option(help="Last lines of each log; 0: all.", min=0)]
LimitOption = Annotated[int, typer.Option(help="How many, newest first.", min=1)]

runs = typer.Typer(help="Pipeline runs, stage runs and attempts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(runs, name="runs")


def open_ledger() -> Ledger:
    return Ledger.open(Workspace.open().ledger_url)


@runs.command("list")
def list_(
    recipe: Annotated[str | None, typer.Option(help="Only runs of this recipe.")] = None,
    stage: Annotated[str | None, typer.Option(help="List stage runs of this stage instead.")] = None,
    limit: LimitOption = 20,
    json_: JsonOption = False,
) -> None:
    """List pipeline runs, or stage runs with --stage."""
    with open_ledger() as ledger:
        if stage is not None:
            stage_runs = ledger.runs(stage=stage, limit=limit)
            if json_:
                print_json([asdict(r) for r in stage_runs])
                return
            print_rows(
                ("run", "stage", "committed", "outputs", "exactness"),
                [(r.run_id, r.stage, r.committed_at, _ports(r.outputs), r.exactness) for r in stage_runs],
                text=("outputs",),
            )
            return
        found = ledger.pipeline_runs(recipe=recipe, limit=limit)
    if json_:
        print_json([{k: v for k, v in asdict(r).items() if k != "resolved"} for r in found])
        return
    print_rows(
        ("pipeline run", "recipe", "status", "started", "took", "trigger", "message"),
        [(r.pipeline_run_id, r.recipe, r.status, r.started_at, _took(r), r.trigger, r.message) for r in found],
        text=("message",),
    )


def _took(run: PipelineRunRow) -> str:
    return duration(None if run.finished_at is None else (run.finished_at - run.started_at).total_seconds())


def _ports(ports: Any) -> str:
    return ", ".join(f"{p.name} {short(p.artifact_id)}" for p in ports)


@runs.command("show")
def show(identity: RunArgument, json_: JsonOption = False) -> None:
    """Show the pipeline run, stage run or attempt with this id (or a prefix of it)."""
    with open_ledger() as ledger:
        row = ledger.resolve(identity)
        if isinstance(row, PipelineRunRow):
            _show_pipeline(ledger, row, json_)
        elif isinstance(row, RunRow):
            _show_run(ledger, row, json_)
        elif isinstance(row, AttemptRow):
            print_json(asdict(row)) if json_ else print_facts(asdict(row) | {"took": duration(row.duration_s)})
        else:
            raise InputError("this is an artifact", value=identity, next_step=f"m4v artifacts show {identity}")


def _show_pipeline(ledger: Ledger, row: PipelineRunRow, json_: bool) -> None:
    nodes = ledger.nodes(row.pipeline_run_id)
    if json_:
        print_json({**asdict(row), "nodes": [asdict(n) for n in nodes]})
        return
    facts = {k: v for k, v in asdict(row).items() if k != "resolved"} | {"took": _took(row)}
    print_facts(facts)
    print()
    print_rows(
        ("stage", "how", "run", "reason"), [(n.node_id, n.how, n.run_id, n.reason) for n in nodes], text=("reason",)
    )


def _show_run(ledger: Ledger, row: RunRow, json_: bool) -> None:
    attempts = ledger.attempts(stage_key=row.stage_key)
    if json_:
        print_json({**asdict(row), "attempts": [asdict(a) for a in attempts]})
        return
    facts = asdict(row)
    for name in ("key_record", "config", "metrics", "inputs", "outputs", "environment"):
        facts.pop(name)
    print_facts(facts)
    for title, values in (("environment", row.environment), ("config", row.config), ("metrics", row.metrics)):
        print(f"\n{title}")
        print_facts({f"  {k}": v for k, v in values.items()})
    print()
    ports = [("input", *_port(p)) for p in row.inputs] + [("output", *_port(p)) for p in row.outputs]
    print_rows(("port", "name", "kind", "artifact"), ports)
    print()
    print_rows(
        ("attempt", "status", "exit", "started", "took", "host", "log"),
        [
            (
                a.attempt_id,
                a.status,
                a.exit_class,
                a.started_at,
                duration(a.duration_s),
                a.host,
                a.log_path,
            )
            for a in attempts
        ],
        text=("log",),
    )


def _port(port: Any) -> tuple[str, str, str]:
    return port.name, port.kind, Id(port.artifact_id)


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
    identity: RunArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Execute every stage again beside the record and compare the bytes.")
    ] = False,
    allow_code: Annotated[bool, typer.Option(help="Even if code or lock file differ from the record.")] = False,
    allow_machine: Annotated[bool, typer.Option(help="Even if device, kernels or threads differ.")] = False,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance instead of the dtype's.", min=0.0)] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance instead of the dtype's.", min=0.0)] = None,
    keep: Annotated[bool, typer.Option(help="Keep the work directories of stages that differ.")] = False,
    json_: JsonOption = False,
) -> None:
    """Execute a pipeline run or a stage run again, from its recorded request.

    With --verify nothing is reused or published: the verdict on every file and tensor is recorded, and the exit code
    is 20 where one differs. Without it the recorded recipe is run anew: what is unchanged is a cache hit.
    """
    from pipelines.cli import rerun as verb  # the launcher and the comparison of files: only this verb needs them

    if not verify:
        verb.run_again(identity, json_)
    verb.verify(identity, verb.options(allow_code, allow_machine, rtol, atol, keep), json_)


@runs.command("logs")
def logs(identity: RunArgument, tail: TailOption = 0) -> None:
    """Print the logs of a stage run's attempts, oldest first."""
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
        log = Path(attempt.log_path)
        sys.stdout.write(f"==> attempt {attempt.attempt_id} of {attempt.node_id or attempt.stage}: {log}\n")
        if not log.is_file():
            sys.stdout.write("    (the log is not on this machine)\n")
            continue
        lines = log.read_text(errors="replace").splitlines()
        sys.stdout.write("\n".join(lines[-tail:] if tail else lines) + "\n")
