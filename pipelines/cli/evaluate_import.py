"""`m4v evaluate import`: videos that another system made, as samples of the ledger.

JSON: pipeline_run_id, exit_class, node, samples (id or null).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eval.importing.config import ImportVideosConfig
from eval.importing.names import collection_state
from eval.stages.import_videos import LOCATION
from m4v.core.assets import resolve
from m4v.core.config import parse
from m4v.core.errors import InputError
from m4v.core.storage import Storage
from pipelines import stages
from pipelines.checkpoint_evaluation import PROTOCOL, Suite
from pipelines.cli.display import RunDisplay
from pipelines.cli.evaluate import evaluate
from pipelines.cli.output import JsonOption, duration, print_facts, print_json, size
from pipelines.execute import PipelineRun
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

RUN_NAME = "videos import"  # stands where runs of a recipe have its name, and is no recipe's
NODE = "import_videos"
SuiteOption = Annotated[
    Suite,
    typer.Option(
        help="Protocol whose prompts and number of videos the folder has: vbench, vbench-long, vbench2, "
        "vbench-i2v, fast or local."
    ),
]
NamesOption = Annotated[
    str | None,
    typer.Option(
        help="How files are called: prompt (PROMPT-0.mp4, as VBench has it), prompt180 (of its first 180 characters, "
        "as VBench-2.0 has it and its default), index (0012-0003.mp4: the prompt's number "
        "and the sample's), or a JSON file {file name: prompt}.",
    ),
]
QuarantineOption = Annotated[
    bool, typer.Option("--quarantine", help="Leave out prompts with a video that cannot be taken, and name them.")
]


@evaluate.command("import")
def import_(
    location: Annotated[str, typer.Argument(metavar="FOLDER", help="A directory or `s3://…` prefix with the videos.")],
    system: Annotated[str, typer.Option(help="What the system is called on pages.")],
    source: Annotated[str, typer.Option(help="Where the videos are from: an address, or words.")],
    licence: Annotated[str, typer.Option(help="Under which licence they may be used, in words.")],
    suite: SuiteOption = "vbench",
    prompts: Annotated[str | None, typer.Option(help="A set's name or a file (default: the suite's).")] = None,
    samples_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Videos of each prompt (default: the suite's).")
    ] = None,
    names: NamesOption = None,
    quarantine: QuarantineOption = False,
    json_: JsonOption = False,
) -> None:
    """Take another system's videos as samples, to measure them, show them beside others and ask people about them.

    Every video of the protocol must be there under its name, decode to its end and be of one size, length and rate;
    what is not is named (20). The bytes are kept as they are.
    """
    place = Storage(resolve(location))
    named, count = PROTOCOL[suite]
    given: dict[str, Any] = {
        "system": system, "source": source, "licence": licence, "state": collection_state(place),
        "prompts": prompts or named, "samples_per_prompt": samples_per_prompt or count, **_names(names, suite),
        "bad": "quarantine" if quarantine else "refuse",
    }  # fmt: skip
    config = parse(ImportVideosConfig, given, "m4v evaluate import")
    workspace, display = Workspace.open(), RunDisplay(quiet=json_)
    node = StageNode(id=NODE, spec=stages.IMPORT_VIDEOS, config=config, inputs={}, locations={LOCATION: place.uri})
    with Ledger.open(workspace.ledger_url) as ledger:
        run = PipelineRun(
            RUN_NAME, config.canonical(), [node], workspace, ledger=ledger, launcher=LocalLauncher(), on_event=display
        )
        with display:
            run.run_all()
    _tell(run, json_)


def _names(given: str | None, suite: str) -> dict[str, object]:
    if given is None:
        return {"names": "prompt180" if suite == "vbench2" else "prompt"}
    kinds: tuple[Literal["prompt", "prompt180", "index"], ...] = ("prompt", "prompt180", "index")
    if given in kinds:
        return {"names": given}
    path = Path(given)
    if not path.is_file():
        raise InputError("--names takes prompt, prompt180, index or a JSON file {file name: prompt}", value=given)
    try:
        return {"names": "map", "files": json.loads(path.read_text())}
    except ValueError as error:
        raise InputError(f"the map of names is no JSON: {error}", value=given) from None


def _tell(run: PipelineRun, json_: bool) -> None:
    outcome = run.outcomes[NODE]
    made = outcome.outputs.get("samples")
    if json_:
        print_json({"pipeline_run_id": run.id, "exit_class": int(run.exit_class), "node": outcome.to_json(),
                    "samples": made.artifact_id if made else None})  # fmt: skip
    elif made is not None:
        print_facts({
            "status": str(outcome.status), "samples": made.artifact_id, "size": size(made.size_bytes),
            "took": duration(outcome.seconds), "next": f"m4v evaluate run {made.artifact_id[:12]} --suite …",
        })  # fmt: skip
    elif sys.stdout.isatty():  # elsewhere the display said it in full
        print(f"{outcome.status}: {outcome.error}")
    raise typer.Exit(int(run.exit_class))
