"""`m4v evaluate run`: what VBench needs here (`--check`), and a suite on samples or on a checkpoint of the ledger.

JSON of `--check`: see `eval.vbench.preflight`; of a run: pipeline_run_id, exit_class, node, scores (id or null), and of
a checkpoint samples (id or null).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from eval.config import EvaluateConfig
from eval.vbench.aggregate import FAST_DIMENSIONS
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.preflight import preflight
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import parse
from m4v.core.errors import ConfigError, ExitClass
from m4v.core.stage import Resources
from pipelines.checkpoint_evaluation import SAMPLING, Suite
from pipelines.cli.display import RunDisplay
from pipelines.cli.evaluate import evaluate
from pipelines.cli.evaluate_checkpoint import checkpoint_run
from pipelines.cli.output import JsonOption, print_facts, print_json
from pipelines.cli.suites import print_suite_preflight
from pipelines.evaluations import evaluation_run, node_of
from pipelines.execute import PipelineRun
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

SamplesArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SAMPLES|CHECKPOINT", help="In the ledger: an id or its beginning. A checkpoint is sampled first."
    ),
]
SuiteOption = Annotated[
    Suite,
    typer.Option(
        help="vbench: each dimension on its prompts; vbench-long: the same on clips, for videos from 5 s on; vbench2: "
        "VBench-2.0, 18 dimensions on prompts of its own, most of them on a GPU alone; "
        "vbench-i2v: VBench-I2V, of imported videos that begin with its pictures; fast: the "
        "eight of the fast protocol on every video; local: the metrics that need no weights, under their own names."
    ),
]
DimensionsOption = Annotated[
    str | None,
    typer.Option(help="all, available (what this machine can measure; the rest is named), or names with commas."),
]
CheckOption = Annotated[bool, typer.Option("--check", help="Only say what is needed, and what of it is here.")]
DigestOption = Annotated[bool, typer.Option("--digest", help="With --check: read and hash every byte.")]
PythonOption = Annotated[Path | None, typer.Option(help="Interpreter of that environment (default: as set up).")]
ClipsOption = Annotated[
    bool, typer.Option("--clip-to-clip/--inside-clips", help="vbench-long: compare clips with each other as published.")
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Folder of the suite's weights (default: $VBENCH_CACHE_DIR, $VBENCH2_CACHE_DIR).")
]
PartialOption = Annotated[bool, typer.Option("--partial", help="Take what videos there are; comparable with none.")]
OwnOption = Annotated[bool, typer.Option("--own", help="Weights of your own: published digests do not hold.")]
RecordOption = Annotated[bool, typer.Option("--record-failures", help="Publish the others when a dimension fails.")]
ZeroOption = Annotated[list[str] | None, typer.Option("--allow-zero", help="A dimension that may be 0.0; repeatable.")]
StaticOption = Annotated[
    bool,
    typer.Option("--static-filter", help="temporal_flickering as published: on near-static videos of 25 a prompt."),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        help="Of a checkpoint: a set's name or a file (default: vbench, vbench2, vbench-fast50, local: shapes-24)."
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(min=1, help="Of a checkpoint: videos of each prompt (default: 5, vbench2: 3, fast and local: 1)."),
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Of a checkpoint: processes (GPUs) that sample side by side.")]
LimitOption = Annotated[float, typer.Option(min=1, help="Seconds that a dimension may take.")]

STANDARD = ("vbench", "vbench-long", "vbench2", "vbench-i2v")  # each dimension on its own prompts


@evaluate.command("run")
def run(
    samples: SamplesArgument = None,
    suite: SuiteOption = "vbench",
    dimensions: DimensionsOption = None,
    check: CheckOption = False,
    digest: DigestOption = False,
    core_python: PythonOption = None,
    legacy_python: PythonOption = None,
    long_python: PythonOption = None,
    long_legacy_python: PythonOption = None,
    vbench2_python: PythonOption = None,
    i2v_python: PythonOption = None,
    cache_dir: CacheOption = None,
    partial: PartialOption = False,
    own: OwnOption = False,
    record_failures: RecordOption = False,
    allow_zero: ZeroOption = None,
    static_filter: StaticOption = False,
    clip_to_clip: ClipsOption = True,
    limit: LimitOption = 6 * 3600.0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where models run.")] = "cpu",
    prompts: PromptsOption = None,
    samples_per_prompt: CountOption = None,
    workers: WorkersOption = 1,
    json_: JsonOption = False,
) -> None:
    """Measure samples, or a checkpoint's, with the real VBench in environments of its own, or with the local metrics;
    the same again is a cache hit. A checkpoint is sampled as it was last, or as its recipe does.

    A dimension that cannot be measured here is refused with what is missing (10); one that fails costs itself alone,
    and the same command goes on with it (30).
    """
    values = {
        "suite": suite if suite in STANDARD else "vbench", "clip_to_clip": clip_to_clip,
        "dimensions": _dimensions(dimensions, suite), "mode": "standard" if suite in STANDARD else "custom",
        "partial": partial, "published_weights": not own, "failures": "record" if record_failures else "stop",
        "allow_zero": tuple(allow_zero or ()), "limit_s": limit,
        "static_filter": static_filter,
    }  # fmt: skip
    config = parse(VBenchConfig, values, "m4v evaluate run")
    given = {"core_python": core_python, "legacy_python": legacy_python, "long_python": long_python,
             "long_legacy_python": long_legacy_python, "vbench2_python": vbench2_python, "i2v_python": i2v_python,
             "vbench2_cache_dir" if suite == "vbench2" else "cache_dir": cache_dir}  # fmt: skip
    locations = {name: str(path.expanduser().absolute()) for name, path in given.items() if path is not None}
    if suite == "fast" and dimensions == "available":
        here = preflight(config, Places.of(locations)).available
        config = config.model_copy(update={"dimensions": here or config.dimensions})
    if check:
        _check(suite, config, locations, device, digest, json_)
    if samples is None:
        raise ConfigError("no samples are named", next_step="m4v artifacts list --kind samples, or --kind checkpoint")
    measuring = EvaluateConfig() if suite == "local" else config
    resources = Resources(ranks=1, threads=1, workers=workers, device=device)
    made = _measure(suite, samples, (measuring, locations, resources), prompts, samples_per_prompt, quiet=json_)
    _tell(made, node_of(measuring), json_)


def _measure(
    suite: Suite,
    samples: str,
    measured_by: tuple[EvaluateConfig | VBenchConfig, dict[str, str], Resources],
    prompts: str | None,
    samples_per_prompt: int | None,
    quiet: bool,
) -> PipelineRun:
    """Run what measures samples, or a checkpoint's."""
    workspace, display = Workspace.open(), RunDisplay(quiet=quiet)
    with Ledger.open(workspace.ledger_url) as ledger:
        if _is_checkpoint(ledger, samples):
            made = checkpoint_run(workspace, ledger, samples, suite, *measured_by, prompts, samples_per_prompt, display)
        else:
            made = evaluation_run(workspace, ledger, LocalLauncher(), samples, *measured_by, display)
        with display:
            made.run_all()
    return made


def _check(
    suite: str, config: VBenchConfig, locations: dict[str, str], device: str, hashing: bool, json_: bool
) -> NoReturn:
    """Tell what this machine has for the suite, and exit: with the class of wrong settings where it lacks something."""
    if suite == "local":
        raise ConfigError("the local metrics need nothing that could be checked", next_step="leave --check out")
    found = preflight(config, Places.of(locations), hashing=hashing, device=device)
    print_json(found.canonical()) if json_ else print_suite_preflight(found, config.suite)
    raise typer.Exit(int(ExitClass.CONFIG if found.refused else ExitClass.OK))


def _is_checkpoint(ledger: Ledger, given: str) -> bool:
    return ledger.artifact(given).kind == ArtifactKind.CHECKPOINT


def _dimensions(given: str | None, suite: str) -> object:
    if given in ("available", "all"):
        return given if suite in STANDARD else FAST_DIMENSIONS
    if given is None:
        return "all" if suite in STANDARD else FAST_DIMENSIONS
    return tuple(name.strip() for name in given.split(",") if name.strip())


def _tell(made: PipelineRun, node: str, json_: bool) -> None:
    """Print what became of the run and end with its exit class."""
    last = next(o for o in made.outcomes.values() if o.node_id == node or not o.status.has_outputs)
    scores, sampled = last.outputs.get("scores"), made.outcomes.get(SAMPLING)
    samples = None if sampled is None else sampled.outputs.get("samples")
    if json_:
        told = {"pipeline_run_id": made.id, "exit_class": int(made.exit_class), "node": last.to_json(),
                "scores": scores.artifact_id if scores else None}  # fmt: skip
        print_json(told if sampled is None else {**told, "samples": samples.artifact_id if samples else None})
    elif scores is not None:
        facts = {"samples": samples.artifact_id} if samples is not None else {}
        print_facts({"status": str(last.status), **facts, "scores": scores.artifact_id})
    elif sys.stdout.isatty():  # elsewhere the display said it in full
        print(f"{last.node_id} {last.status}: {last.error}")
    raise typer.Exit(int(made.exit_class))
