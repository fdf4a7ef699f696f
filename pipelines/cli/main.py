"""The command line: `m4v VERB`. Exit codes are the product's exit classes; 2 is usage, 60 a refused gate."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from m4v.core.errors import ExitClass, M4VError

app = typer.Typer(
    name="m4v",
    help="From raw video collections to an evaluated, promotable text-to-video checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _home(
    home: Annotated[
        str | None,
        typer.Option(help="Directory of ledger, store and work files (default: $M4V_HOME, else ./m4v-home)."),
    ] = None,
) -> None:
    if home is not None:
        os.environ["M4V_HOME"] = home


def _register() -> None:
    from pipelines.cli import artifacts, deploy, doctor, ledger, lineage, run, runs

    for module in (run, runs, artifacts, lineage, ledger, deploy, doctor):
        module.register(app)


def main() -> None:
    """Console entry point: every error a user can cause is one line on stderr and an exit class."""
    _register()
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Abort:
        code = ExitClass.DRAINED
    except click.ClickException as error:
        error.show()
        code = ExitClass.USAGE
    except M4VError as error:
        sys.stderr.write(f"m4v: {error}\n")
        code = error.exit_class
    except KeyboardInterrupt:
        sys.stderr.write("m4v: interrupted; the same command goes on from the saved state\n")
        code = ExitClass.DRAINED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitClass.OK
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()
