"""`m4v evaluate run`: what VBench needs here (`--check`), and VBench on samples of the ledger.

JSON of `--check`: see `eval.vbench.preflight`; of a run: pipeline_run_id, exit_class, node, scores (id or null).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from eval.vbench.aggregate import FAST_DIMENSIONS
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.preflight import preflight
from m4v.core.config import parse
from m4v.core.errors import ConfigError, ExitClass
from m4v.core.stage import Resources
from pipelines.cli.display import RunDisplay
from pipelines.cli.evaluate import evaluate
from pipelines.cli.output import JsonOption, print_facts, print_json
from pipelines.cli.run import drain_on_signal
from pipelines.cli.suites import print_suite_preflight
from pipelines.evaluations import NODE, evaluation_run
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

SamplesArgument = Annotated[
    str | None, typer.Argument(metavar="SAMPLES", help="Samples in the ledger: an id or its beginning.")
]
SuiteOption = Annotated[
    Literal["vbench", "fast"],
    typer.Option(help="vbench: each dimension on its prompts; fast: the eight of the fast protocol on every video."),
]
DimensionsOption = Annotated[
    str | None,
    typer.Option(help="all, available (what this machine can measure; the rest is named), or names with commas."),
]
CheckOption = Annotated[bool, typer.Option("--check", help="Only say what is needed, and what of it is here.")]
DigestOption = Annotated[bool, typer.Option("--digest", help="With --check: read and hash every byte.")]
PythonOption = Annotated[Path | None, typer.Option(help="Interpreter of that environment (default: as set up).")]
CacheOption = Annotated[Path | None, typer.Option(help="Folder of VBench's weights (default: $VBENCH_CACHE_DIR).")]
PartialOption = Annotated[bool, typer.Option("--partial", help="Take what videos there are; comparable with none.")]
OwnOption = Annotated[bool, typer.Option("--own", help="Weights of your own: published digests do not hold.")]
RecordOption = Annotated[bool, typer.Option("--record-failures", help="Publish the others when a dimension fails.")]
ZeroOption = Annotated[list[str] | None, typer.Option("--allow-zero", help="A dimension that may be 0.0; repeatable.")]
LimitOption = Annotated[float, typer.Option(min=1, help="Seconds that a dimension may take.")]


@evaluate.command("run")
def run(
    samples: SamplesArgument = None,
    suite: SuiteOption = "vbench",
    dimensions: DimensionsOption = None,
    check: CheckOption = False,
    digest: DigestOption = False,
    core_python: PythonOption = None,
    legacy_python: PythonOption = None,
    cache_dir: CacheOption = None,
    partial: PartialOption = False,
    own: OwnOption = False,
    record_failures: RecordOption = False,
    allow_zero: ZeroOption = None,
    limit: LimitOption = 6 * 3600.0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the models of VBench run.")] = "cpu",
    json_: JsonOption = False,
) -> None:
    """Measure samples with the real VBench, in environments of its own; the same again is a cache hit.

    A dimension that cannot be measured here is refused with what is missing (10); one that fails costs itself alone,
    and the same command goes on with it (30).
    """
    values = {
        "dimensions": _dimensions(dimensions, suite), "mode": "standard" if suite == "vbench" else "custom",
        "partial": partial, "published_weights": not own, "failures": "record" if record_failures else "stop",
        "allow_zero": tuple(allow_zero or ()), "limit_s": limit,
    }  # fmt: skip
    config = parse(VBenchConfig, values, "m4v evaluate run")
    given = {"core_python": core_python, "legacy_python": legacy_python, "cache_dir": cache_dir}
    locations = {name: str(path.expanduser().absolute()) for name, path in given.items() if path is not None}
    if suite == "fast" and dimensions == "available":
        here = preflight(config, Places.of(locations)).available
        config = config.model_copy(update={"dimensions": here or config.dimensions})
    if check:
        found = preflight(config, Places.of(locations), hashing=digest)
        print_json(found.canonical()) if json_ else print_suite_preflight(found)
        raise typer.Exit(int(ExitClass.CONFIG if found.refused else ExitClass.OK))
    if samples is None:
        raise ConfigError("no samples are named", next_step="m4v artifacts list --kind samples")
    _measure(samples, config, locations, Resources(ranks=1, threads=1, workers=1, device=device), json_)


def _dimensions(given: str | None, suite: str) -> object:
    if given in ("available", "all"):
        return given if suite == "vbench" else FAST_DIMENSIONS
    if given is None:
        return "all" if suite == "vbench" else FAST_DIMENSIONS
    return tuple(name.strip() for name in given.split(",") if name.strip())


def _measure(
    samples: str, config: VBenchConfig, locations: dict[str, str], resources: Resources, json_: bool
) -> None:  # fmt: skip
    workspace, display = Workspace.open(), RunDisplay(quiet=json_)
    with Ledger.open(workspace.ledger_url) as ledger:
        made = evaluation_run(workspace, ledger, LocalLauncher(), samples, config, locations, resources, display)
        with drain_on_signal(made, as_flow=False), display:
            made.run_all()
    outcome = made.outcomes[NODE]
    scores = outcome.outputs.get("scores")
    if json_:
        print_json({"pipeline_run_id": made.id, "exit_class": int(made.exit_class), "node": outcome.to_json(),
                    "scores": scores.artifact_id if scores else None})  # fmt: skip
    elif scores is not None:
        print_facts({"status": str(outcome.status), "scores": scores.artifact_id})
    elif sys.stdout.isatty():  # elsewhere the display said it in full
        print(f"{outcome.node_id} {outcome.status}: {outcome.error}")
    raise typer.Exit(int(made.exit_class))
