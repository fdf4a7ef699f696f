"""`m4v plan|run|demo`: what would run and why; run it; the summary at the end."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from m4v.core.errors import ExitClass
from pipelines.cli.display import RunDisplay
from pipelines.cli.output import (
    JsonOption,
    RecipeArgument,
    SetOption,
    UntilOption,
    duration,
    print_json,
    print_rows,
    short,
    size,
)
from pipelines.cli.preflight import print_generation, print_missing, print_notes, print_preflight
from pipelines.cli.run_measured import print_measured_nodes
from pipelines.cli.suites import print_suite_costs
from pipelines.execute import PipelineRun
from pipelines.interrupts import drain_on_signal
from pipelines.plan import NO_HISTORY, Plan, PlanStep, hours_text
from pipelines.plan_view import PlanView, view_of
from pipelines.preflight import preflight, refuse
from pipelines.session import Session, open_session
from pipelines.workspace import HOME_VARIABLE

VerifyOption = Annotated[bool, typer.Option("--verify", help="Hash every byte of cache hits, not only sizes.")]
RehearseOption = Annotated[
    bool,
    typer.Option("--rehearse", help="Real sizes, two steps a training stage, under a name and keys of its own."),
]
PrefectOption = Annotated[
    bool, typer.Option(help="Run as a Prefect flow (on a temporary server, or the one in PREFECT_API_URL).")
]
SHOWN_WAITS = 2


def register(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(run)
    app.command()(demo)


def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    until: UntilOption = None,
    diff: Annotated[
        str | None,
        typer.Option(
            help="What differs, stage by stage, from a pipeline run, or from what the checkpoint of a channel was made "
            "with.",
            metavar="RUN|CHANNEL",
        ),
    ] = None,
    rehearse: RehearseOption = False,
    json_: JsonOption = False,
) -> None:
    """Say what a run would do, and why, without running anything.

    Stages that need a collection, weights or a GPU which are not here are told as missing. Of training stages:
    parameters, memory, time and GPU-hours before the first run; a stage that its GPUs cannot hold is refused (10).
    """
    session = open_session(recipe, set_ or (), rehearse=rehearse)
    made = session.plan(until, tolerant=diff is None)
    command = _run_command(recipe, set_ or (), until, rehearse)
    view = view_of(session.recipe, session.nodes, made, session.ledger, command)
    if diff is not None:
        from pipelines.cli.plan_diff import print_plan_diff
        from pipelines.compare.plans import compare_plan

        compared = compare_plan(session.ledger, view.plan, session.nodes, diff)
        print_json({**compared.to_json(), "plan": view.plan.to_json()}) if json_ else print_plan_diff(compared)
    elif json_:
        print_json({**view.to_json(), "notes": list(session.notes)})
    else:
        print_view(view, session)
    refuse(view.training)


def _run_command(recipe: str, overrides: Sequence[str], until: str | None, rehearse: bool) -> str:
    """The run that a plan of the same words foretells."""
    words = ["m4v", "run", recipe, *(word for override in overrides for word in ("--set", override))]
    return shlex.join([*words, *(["--until", until] if until else []), *(["--rehearse"] if rehearse else [])])


def print_view(view: PlanView, session: Session) -> None:
    """What is missing first, then stages and costs, what to do last."""
    print_notes(session)
    print_missing(view.missing)
    print_plan(view.plan)
    print_preflight(view.training)
    on_gpus = {step.node_id for step in view.plan.steps if step.device != "cpu"}
    print_generation({node: each for node, each in view.videos.items() if node in on_gpus}, view.gpu)
    print_suite_costs(view.judged_suites)
    for step in view.next_steps:
        print(f"next: {step}")


def print_plan(made: Plan) -> None:
    on_gpu = any(s.device != "cpu" for s in made.steps)
    columns = ("stage", "what", "why", "estimate", *(("GPU-hours",) if on_gpu else ()), "size")
    rows = []
    for s in made.steps:
        hours = (s.gpu_hours,) if on_gpu else ()
        rows.append((s.node_id, s.status, _why(s), duration(s.estimate_s), *hours, size(s.size_bytes)))
    print_rows(columns, rows, title=f"Plan of {made.recipe}", text=("why",))
    counts = ", ".join(f"{count} {name}" for name, count in made.counts().items() if count)
    unknown = f"; no history for {_few(made.unknown)}" if made.unknown else ""
    sums = (
        f"about {duration(made.estimate_s)} of work, {hours_text(made.gpu_hours)} GPU-hours, "
        f"{size(made.size_bytes)} to write"
    )
    print(f"{counts}; {f'{sums}{unknown}' if made.foretold else NO_HISTORY}")


def _why(step: PlanStep) -> str:
    """The reason, with a long list of stages counted instead; of what is missing the table above says more."""
    names = ", ".join(step.waits_for)
    return step.problem or (step.reason.replace(names, _few(step.waits_for)) if names else step.reason)


def _few(stages: Sequence[str]) -> str:
    return ", ".join(stages) if len(stages) <= SHOWN_WAITS else f"{len(stages)} stages"


def demo(
    set_: SetOption = None,
    until: UntilOption = None,
    verify: VerifyOption = False,
    prefect: PrefectOption = True,
    home: Annotated[str | None, typer.Option(help="As in `m4v --home`.", metavar="DIRECTORY")] = None,
    json_: JsonOption = False,
) -> None:
    """Real clips to an evaluated checkpoint and a report: the same as `m4v run demo`."""
    if home is not None:
        os.environ[HOME_VARIABLE] = home
    run("demo", set_, until, verify, prefect, json_)


def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    until: UntilOption = None,
    verify: VerifyOption = False,
    prefect: PrefectOption = True,
    json_: JsonOption = False,
    rehearse: RehearseOption = False,
) -> None:
    """Run every stage that is not a cache hit. Killed at any moment, the same command goes on.

    Ctrl-C or SIGTERM lets running stages save their state and ends with code 40; a second one ends at once.
    """
    session = open_session(recipe, set_ or (), rehearse=rehearse)
    if not json_:
        print_notes(session)
    exit_class = run_session(session, until, verify=verify, prefect=prefect, json_=json_, measured=rehearse)
    raise typer.Exit(int(exit_class))


def run_session(
    session: Session, until: str | None, *, verify: bool, prefect: bool, json_: bool, measured: bool = False
) -> ExitClass:
    """Run an opened recipe, show how it goes and what became of it; returns the run's exit class. `measured`: with
    time and memory of its training stages, what a rehearsal is for."""
    started = time.monotonic()
    made = session.plan(until)
    refuse(preflight(session.recipe, session.nodes, made, session.ledger))
    display = RunDisplay(quiet=json_)
    display.announce(session, made)
    pipeline_run = session.new_run(until, deep_verify=verify, on_event=display)
    as_flow = prefect and not made.all_hits  # a plan of cache hits alone starts no server
    try:
        with display:
            if as_flow:
                _run_as_flow(session, pipeline_run, display)
            else:
                pipeline_run.run_all()
    finally:
        exit_class = pipeline_run.finish()
    if json_:
        print_json({"pipeline_run_id": pipeline_run.id, "exit_class": int(exit_class),
                    "nodes": [o.to_json() for o in pipeline_run.outcomes.values()]})  # fmt: skip
    else:
        if measured:
            print_measured_nodes(session.ledger, pipeline_run.id)
        _summary(session, pipeline_run, time.monotonic() - started)
    return exit_class


def _run_as_flow(session: Session, pipeline_run: PipelineRun, display: RunDisplay) -> None:
    from pipelines.embedded import run_flow

    with drain_on_signal(pipeline_run.drain, as_flow=True):
        run_flow(session, pipeline_run, display.tell)


def _summary(session: Session, pipeline_run: PipelineRun, seconds: float) -> None:
    rows = []
    for outcome in pipeline_run.outcomes.values():
        made = ", ".join(f"{o.kind} {short(o.artifact_id)}" for o in outcome.outputs.values())
        rows.append((outcome.node_id, outcome.status, duration(outcome.seconds), outcome.run_id, made))
    print_rows(
        ("stage", "status", "time", "run id", "artifact"), rows, title=f"Run {pipeline_run.id}", text=("artifact",)
    )
    for outcome in pipeline_run.outcomes.values():
        if outcome.error:
            log = f"\n    log: {outcome.log_path}" if outcome.log_path else ""
            print(f"{outcome.node_id} {outcome.status}: {outcome.error}{log}")
    report = pipeline_run.outcomes.get("report")
    if report is not None and report.outputs:
        print(f"report: {next(iter(report.outputs.values())).uri}/index.html")
    verdicts = {
        ExitClass.OK: "done",
        ExitClass.GATE_REFUSED: "the gate refused the checkpoint",
        ExitClass.DRAINED: "drained, the same command resumes",
    }
    verdict = verdicts.get(pipeline_run.exit_class, "not finished")
    print(f"{verdict} after {duration(seconds)}; m4v runs show {pipeline_run.id}")
