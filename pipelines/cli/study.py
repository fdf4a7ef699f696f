"""`m4v study …`: people compare videos of several systems, blind; what they said becomes an artifact."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from eval.study.config import CRITERIA, Criterion, StudyConfig
from eval.study.records import TABLE, StudyResults
from m4v.core.config import parse
from m4v.core.errors import ConfigError, InputError
from m4v.core.storage import write_atomic
from pipelines.cli.display import RunDisplay
from pipelines.cli.output import JsonOption, print_facts, print_json, print_rows
from pipelines.cli.serve import LOOPBACK, listen, url_of
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.studies import NODE, OpenStudy, create_run, open_study, read_results, results_run
from pipelines.workspace import Workspace

study = typer.Typer(help="People compare videos of several systems: invitations, page, results.", no_args_is_help=True)
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Id of a study (or its beginning).")]
AddressOption = Annotated[
    str, typer.Option(help="Where participants reach the page, as `https://study.example.org`; goes into the links.")
]
_ADDRESS = "http://localhost:8771"
_PORT = 8771


def register(app: typer.Typer) -> None:
    app.add_typer(study, name="study")


@study.command("create")
def create(
    system: Annotated[
        list[str], typer.Option("--system", metavar="NAME=SAMPLES", help="A system and its samples; twice or more.")
    ],
    title: Annotated[str, typer.Option(help="What participants see as the title.")] = "Which video is better?",
    mode: Annotated[Literal["rank", "pairwise"], typer.Option(help="Rank all, or compare two at a time.")] = "rank",
    criterion: Annotated[
        list[str] | None,
        typer.Option(metavar="TITLE=QUESTION", help="What to judge by; repeatable. Default: the paper's three."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="At most so many prompts, drawn by the seed.", min=1)] = 50,
    tasks: Annotated[int | None, typer.Option(help="Tasks of one participant (default: all).", min=1)] = None,
    ties: Annotated[bool, typer.Option("--ties", help="Equal ranks, and no preference, are allowed.")] = False,
    seed: Annotated[int, typer.Option(help="Of the drawn prompts and orders.", min=0)] = 0,
    consent: Annotated[str | None, typer.Option(help="What participants agree to.")] = None,
    json_: JsonOption = False,
) -> None:
    """Make a study from sample sets of the ledger; every system must have the same prompts.

    Videos get names that tell nothing; who sees what in which order follows from the study and the participant's
    number. The same command again finds the same study.
    """
    given = _pairs(system, "--system", "NAME=SAMPLES")
    values: dict[str, object] = {
        "title": title, "mode": mode, "systems": list(given), "prompts": prompts, "tasks": tasks, "ties": ties,
        "seed": seed, "criteria": [c.canonical() for c in _criteria(criterion)],
    }  # fmt: skip
    config = parse(StudyConfig, {**values, **({"consent": consent} if consent else {})}, "m4v study create")
    workspace, display = Workspace.open(), RunDisplay(quiet=json_)
    with Ledger.open(workspace.ledger_url) as ledger:
        run = create_run(workspace, ledger, LocalLauncher(), given, config, display)
        with display:
            run.run_all()
        outcome = run.outcomes[NODE]
        if not outcome.outputs:
            if json_:
                print_json({"exit_class": int(run.exit_class), "node": outcome.to_json(), "study": None})
            raise typer.Exit(int(run.exit_class))
        found = open_study(workspace, ledger, outcome.outputs["study"].artifact_id)
    _tell(found, outcome.to_json(), json_)


@study.command("invite")
def invite(
    study_id: StudyArgument,
    count: Annotated[int, typer.Option(help="New invitations.", min=0, max=10_000)] = 0,
    revoke: Annotated[
        list[str] | None, typer.Option(metavar="PARTICIPANT", help="Close an invitation (p001); repeatable.")
    ] = None,
    address: AddressOption = _ADDRESS,
    json_: JsonOption = False,
) -> None:
    """Make invitations, which are shown this once; close some; or list who was invited and how far they are.

    What a revoked participant answered stays on record and counts no more.
    """
    found = _opened(study_id)
    with found.answers() as answers:
        for participant in revoke or ():
            answers.revoke(participant)
        made = [{"participant": p.id, "link": f"{address.rstrip('/')}/s/{t}"} for p, t in answers.invite(count)]
        if made:
            _show(made, json_)
            return
        total = _tasks(found)
        people: list[dict[str, object]] = [
            {"participant": p.id, "state": "revoked" if p.revoked else "open", "consented": p.consented,
             "answered": len(answers.answered(p)), "of": total}
            for p in answers.participants()
        ]  # fmt: skip
    _show(people, json_)


@study.command("serve")
def serve(
    study_id: StudyArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = _PORT,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy on this machine passes requests on under another name.")
    ] = False,
) -> None:
    """Serve the study's page until Ctrl-C. Every answer is on disk before it is acknowledged, so the server may be
    stopped at any time, and participants go on with the same link."""
    import uvicorn

    from pipelines.web.study import create_study_app

    found = _opened(study_id)
    with listen(host, port) as listening:
        answers = found.answers()
        local = host in ("127.0.0.1", "localhost", "::1") and not behind_proxy
        app = create_study_app(found.study, found.media, answers, names=LOOPBACK if local else ())
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="on",
            timeout_graceful_shutdown=3,
        )  # fmt: skip
        people = len(answers.participants())
        invited = (
            f"{people} invited" if people else f"nobody is invited yet: m4v study invite {found.id[:12]} --count N"
        )
        sys.stdout.write(f"study on {url_of(listening)} ({invited}; Ctrl-C ends)\n")
        sys.stdout.flush()
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        sys.stdout.write("stopped\n")


@study.command("results")
def results(
    study_id: StudyArgument,
    csv: Annotated[Path | None, typer.Option(help="Write every answer that stands to this CSV file.")] = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Count also participants who always chose the same place.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """What the answers say now: mean ranks, win rates, Bradley-Terry strengths and agreement, as an artifact whose
    lineage leads to the samples. The page may be served meanwhile."""
    workspace, display = Workspace.open(), RunDisplay(quiet=True)
    with Ledger.open(workspace.ledger_url) as ledger:
        found = open_study(workspace, ledger, study_id)
        run = results_run(workspace, ledger, LocalLauncher(), found, keep_all=keep_all, on_event=display)
        with display:
            run.run_all()
        outcome = run.outcomes[NODE]
        if not outcome.outputs:
            print_facts({"status": str(outcome.status), "reason": outcome.error})
            raise typer.Exit(int(run.exit_class))
        artifact, record = read_results(workspace, ledger, outcome.outputs["scores"].artifact_id)
    if csv is not None:
        write_atomic(csv, artifact.path(TABLE).read_bytes())
    if json_:
        print_json({"artifact_id": artifact.id, **record.canonical()})
    else:
        _print(artifact.id, record)


def _tell(found: OpenStudy, node: dict[str, object], json_: bool) -> None:
    """A study that was made or found."""
    if json_:
        print_json({
            "exit_class": 0, "node": node, "study": found.id, "mode": found.study.mode,
            "systems": list(found.study.names), "prompts": len(found.study.prompts),
            "tasks_of_a_participant": _tasks(found),
        })  # fmt: skip
    else:
        print_facts({
            "study": found.id, "mode": found.study.mode, "systems": ", ".join(found.study.names),
            "prompts": len(found.study.prompts), "tasks of a participant": _tasks(found),
            "next": f"m4v study invite {found.id[:12]} --count 20",
        })  # fmt: skip


def _print(artifact_id: str, record: StudyResults) -> None:
    print_facts({
        "results": artifact_id, "study": record.study, "participants": f"{record.participants} of {record.invited}",
        "complete": record.complete, "answers": record.answers,
    })  # fmt: skip
    for excluded in record.excluded:
        sys.stdout.write(f"not counted: {excluded.participant} with {excluded.answers} answers, {excluded.reason}\n")
    for criterion in record.criteria:
        agreement = f"Kendall's W {_number(criterion.kendall_w)}, Krippendorff's alpha "
        sys.stdout.write(f"\n{criterion.title}: {agreement}{_number(criterion.krippendorff_alpha)}\n")
        rows = [
            (s.system, s.comparisons, _with(s.mean_rank, s.mean_rank_interval), _with(s.win_rate, s.win_rate_interval),
             _with(s.strength, s.strength_interval))
            for s in sorted(criterion.systems, key=lambda s: -s.strength)
        ]  # fmt: skip
        print_rows(("system", "comparisons", "mean rank", "win rate", "strength"), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with(value: float | None, interval: tuple[float, float] | None) -> str:
    return _number(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _show(rows: list[dict[str, object]] | list[dict[str, str]], json_: bool) -> None:
    if json_:
        print_json(rows)
    elif rows:
        print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
    else:
        sys.stdout.write("nobody is invited yet\n")


def _opened(given: str) -> OpenStudy:
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        return open_study(workspace, ledger, given)


def _tasks(found: OpenStudy) -> int:
    from eval.study.design import tasks_of

    return len(tasks_of(found.study, "p001"))


def _pairs(given: list[str], option: str, form: str) -> dict[str, str]:
    """Raises ConfigError for one that is not of the form, or a name that stands twice."""
    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ConfigError(f"{option} takes {form}", value=text, next_step="m4v artifacts list --kind samples")
        if name in found:
            raise ConfigError(f"{option} names one system twice", value=name)
        found[name] = value
    return found


def _criteria(given: list[str] | None) -> tuple[Criterion, ...]:
    if not given:
        return CRITERIA
    found = []
    for number, text in enumerate(given, 1):
        title, _, question = text.partition("=")
        if not title or not question:
            raise InputError("--criterion takes TITLE=QUESTION", value=text)
        found.append(Criterion(key=f"criterion_{number}", title=title, question=question))
    return tuple(found)
