"""`m4v data import`: latents that others computed, as a dataset version of the ledger."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from dataprep.import_config import ImportConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.assets import resolve
from m4v.core.config import parse, weights_names
from m4v.core.errors import ConfigError
from m4v.core.stage import WEIGHTS_INPUT, Resources
from m4v.core.storage import Storage
from pipelines import stages
from pipelines.cli.display import RunDisplay
from pipelines.cli.output import JsonOption, SetOption, duration, print_facts, print_json, size
from pipelines.dataset_versions import pinned_node
from pipelines.execute import PipelineRun
from pipelines.ledger import Ledger
from pipelines.recipe import Profile
from pipelines.recipe_files import apply_override
from pipelines.session import launcher_of
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

RUN_NAME = "dataset import"  # stands where runs of a recipe have its name, and is no recipe's


def import_(
    location: Annotated[str, typer.Argument(metavar="DIR", help="A directory or `s3://…` prefix with the tables.")],
    layout: Annotated[
        str,
        typer.Option(
            help="pyramidflow (JSON lines, .pt files), fastvideo (Parquet) or folders (latent/, prompt_embed/)."
        ),
    ],
    name: Annotated[str, typer.Option(help="What the collection is called: part of every clip id.")],
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="NAME=ARTIFACT", help="Imported weights that codec or text encoder name."),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Bring precomputed latents in as a dataset version, after checking their shapes, scale and encoder.

    Where media lie beside the rows, some are encoded again and compared: latents of another VAE than the one that
    `--set codec…` names end with code 20. The encoder's digest keeps the dataset from being merged with others'.
    """
    from dataprep.sources.rows import tree_digest  # brings pyarrow

    place = resolve(location)
    given: dict[str, Any] = {"layout": layout, "name": name, "state": tree_digest(Storage(place), "import")}
    for override in set_ or ():
        apply_override(given, override)
    config = parse(ImportConfig, given, "m4v data import")
    run, outcome = _run(config, Storage(place).uri, _artifacts(weights or []), quiet=json_)
    made = outcome.outputs.get("dataset")
    if json_:
        print_json({"pipeline_run_id": run.id, "exit_class": int(run.exit_class), "node": outcome.to_json(),
                    "artifact_id": made.artifact_id if made else None})  # fmt: skip
    elif made is not None:
        print_facts({"status": str(outcome.status), "run": outcome.run_id, "dataset": made.artifact_id,
                     "size": size(made.size_bytes), "took": duration(outcome.seconds), "place": made.uri})  # fmt: skip
    elif sys.stdout.isatty():  # elsewhere the display said it in full
        print(f"{outcome.status}: {outcome.error}")
    raise typer.Exit(int(run.exit_class))


def _artifacts(given: list[str]) -> dict[str, str]:
    """Raises ConfigError for one that is not NAME=ARTIFACT."""
    pairs = [text.partition("=") for text in given]
    for pair, text in zip(pairs, given, strict=True):
        if not all(pair):
            raise ConfigError(
                "--weights takes NAME=ARTIFACT", value=text, next_step="m4v artifacts list --kind weights"
            )
    return {name: artifact for name, _, artifact in pairs}


def _run(config: ImportConfig, location: str, artifacts: dict[str, str], *, quiet: bool) -> tuple[PipelineRun, Any]:
    """The import as a pipeline run of its own, to its end."""
    needed = weights_names(config.codec, config.text_encoder)
    if missing := sorted(set(needed) - set(artifacts)):
        raise ConfigError(
            "codec or text encoder names weights that are not given", value=missing[0],
            next_step=f"--weights {missing[0]}=ARTIFACT (m4v weights import makes one)",
        )  # fmt: skip
    workspace = Workspace.open()
    display = RunDisplay(quiet=quiet)
    with Ledger.open(workspace.ledger_url) as ledger:
        pinned = {n: pinned_node(ledger, ledger.artifact(artifacts[n], ArtifactKind.WEIGHTS)) for n in needed}
        node = StageNode(
            id="import", spec=stages.IMPORT, config=config, resources=Resources(ranks=1, threads=1, workers=1),
            inputs={f"{WEIGHTS_INPUT}.{n}": (pin.id, "weights") for n, pin in pinned.items()},
            locations={config.name: location},
        )  # fmt: skip
        nodes = [*{pin.id: pin for pin in pinned.values()}.values(), node]
        run = PipelineRun(
            RUN_NAME, config.canonical(), nodes, workspace,
            ledger=ledger, launcher=launcher_of(Profile()), on_event=display,
        )  # fmt: skip
        with display:
            run.run_all()
    return run, run.outcomes[node.id]
