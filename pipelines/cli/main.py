"""The command line: `m4v VERB`. Exit codes are the product's exit classes; 2 is usage, 60 a refused gate."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from m4v.core.errors import ExitClass, M4VError
from pipelines.workspace import HOME_VARIABLE

COLLECT_AFTER = 100_000  # new container objects; Python's own value is 700
INTERRUPTED = 130  # how typer answers a KeyboardInterrupt
EXIT_CODES = (
    "Exit codes: 0 ok, 1 a fault of m4v (see the log), 2 usage, 10 the recipe or environment must change, "
    "20 bytes are not what they claim to be, 30 infrastructure (try again), 40 drained (the same command resumes), "
    "50 somebody must decide, 60 the gate refused the checkpoint."
)


# The modules of pipelines.cli that register each verb or add to its group, in the order of the help.
VERBS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("plan", "run", "demo"), ("run",)),
    "runs": ("runs", "channels"),  # `approve` is of a promotion
    "data": ("data",),
    "artifacts": ("artifacts",),
    "channels": ("channels",),
    "lineage": ("lineage", "exports"),
    "takedown": ("takedown",),
    "ledger": ("ledger", "exports"),
    "weights": ("weights",),
    "generate": ("generate",),
    "study": ("study",),
    "flops": ("flops",),
    "evaluate": ("evaluate",),
    "deploy": ("deploy",),
    "serve": ("serve",),
    "reconcile": ("reconcile",),
    "doctor": ("doctor",),
}


def build_app(verb: str | None = None) -> typer.Typer:
    """All verbs; for one that `VERBS` knows only its modules: the imports of all cost more than most verbs' work."""
    app = typer.Typer(
        name="m4v",
        help="From raw video collections to an evaluated, promotable text-to-video checkpoint.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_home)
    every = dict.fromkeys(module for modules in VERBS.values() for module in modules)
    for module in VERBS.get(verb or "", every):
        import_module(f"pipelines.cli.{module}").register(app)
    return app


def _verb(arguments: Sequence[str]) -> str | None:
    """The first word of a command line that is no option; None where an option comes first that is not --home."""
    words = iter(arguments)
    for word in words:
        if word == "--home":
            next(words, None)
        elif not word.startswith("--home="):
            return None if word.startswith("-") else word
    return None


def _home(
    home: Annotated[
        str | None,
        typer.Option(help="Directory of ledger, store and work files (default: $M4V_HOME, else ./m4v-home)."),
    ] = None,
) -> None:
    if home is not None:
        os.environ[HOME_VARIABLE] = home


def main() -> None:
    """Console entry point: every error a user can cause is one line on stderr and an exit class."""
    # Imports and plans make objects that stay: collecting among them is a third of a plan's CPU time.
    gc.set_threshold(COLLECT_AFTER)
    try:
        code = build_app(_verb(sys.argv[1:]))(standalone_mode=False)
    except typer.TyperException as error:  # usage: an unknown verb or option, a bad value
        _complain(error.format_message().replace("Value error, ", ""))  # empty when help was shown instead
        code = error.exit_code
    except M4VError as error:
        _complain(error.message)
        code = error.exit_class
    if code == INTERRUPTED:
        _complain("interrupted; the same command goes on from the saved state")
        code = ExitClass.DRAINED
    sys.exit(int(code or 0))


def _complain(text: str) -> None:
    if text:
        sys.stderr.write(f"m4v: {text}\n")


if __name__ == "__main__":
    main()
