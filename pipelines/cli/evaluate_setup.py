"""`m4v evaluate setup`: an environment of VBench, made from pins, verified by importing every dimension.

JSON: name, folder, python (path), already (true: nothing was done), installed_digest, python_version, packages {name:
version}, dimensions {name: null, or why it does not import}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from eval.vbench.environment import EnvironmentName, environments_root
from eval.vbench.setup import Made, set_up
from pipelines.cli.evaluate import evaluate
from pipelines.cli.output import JsonOption, print_facts, print_json

NameArgument = Annotated[
    EnvironmentName,
    typer.Argument(
        help="core: ten dimensions; legacy: the other six; long, long-legacy: likewise of VBench-Long; vbench2: "
        "VBench-2.0; i2v: VBench-I2V."
    ),
]
IntoOption = Annotated[
    Path | None, typer.Option(help="Where (default: NAME below $M4V_VBENCH, else below ~/.cache/m4v/vbench).")
]
PythonOption = Annotated[
    Path | None,
    typer.Option(
        help="Interpreter to make it from (default: this one; legacy and long-legacy need Python 3.11, vbench2 3.10)."
    ),
]
TorchOption = Annotated[
    str | None, typer.Option(help="Version of torch (default: the one of this interpreter, vbench2: 2.5.1).")
]
DetectronOption = Annotated[
    str | None,
    typer.Option("--detectron2", help="legacy, long-legacy: a wheel or a checkout, where git is not reached."),
]


@evaluate.command("setup")
def setup(
    name: NameArgument,
    into: IntoOption = None,
    python: PythonOption = None,
    torch: TorchOption = None,
    detectron2: DetectronOption = None,
    json_: JsonOption = False,
) -> None:
    """Make an environment of VBench, VBench-Long, -2.0 or -I2V, some gigabytes; a sound one is left as it is.

    Ends with 30 when packages cannot be fetched, with 10 when a dimension does not import in what was made.
    """
    folder = environments_root() / name if into is None else into
    made = set_up(name, folder, python=python, torch=torch, extra=detectron2, say=_say)
    if json_:
        print_json(_json(made))
        return
    print_facts({
        "environment": name, "place": str(made.folder), "python": made.record.python,
        "packages": len(made.record.packages), "dimensions": len(made.record.dimensions),
        "installed": made.record.installed_digest, "status": "was there" if made.already else "made",
    })  # fmt: skip
    if made.record.operator_schemas:
        print("its torchvision is for GPUs and torch for the CPU: fit for trying out, and no detector runs in it")
    if into is not None:
        print(f"in a recipe: evaluation.vbench.{name.replace('-', '_')}_python={made.python}")


def _json(made: Made) -> dict[str, object]:
    record = made.record
    return {
        "name": record.name, "folder": str(made.folder), "python": str(made.python), "already": made.already,
        "installed_digest": record.installed_digest, "python_version": record.python, "packages": record.packages,
        "dimensions": record.dimensions, "operator_schemas": record.operator_schemas,
    }  # fmt: skip


def _say(words: str) -> None:
    """Progress is no output."""
    print(words, file=sys.stderr, flush=True)
