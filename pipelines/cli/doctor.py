"""`m4v doctor`: is this machine ready? One line a check, with the command that mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Annotated

import typer

from m4v.core.assets import assets_dir
from m4v.core.errors import ConfigError, ExitClass, M4VError
from pipelines.cli.output import JsonOption, print_json, print_rows
from pipelines.cli.runs import open_ledger
from pipelines.keys import CODE_ROOT, probe_value
from pipelines.lookup import pinned_artifact
from pipelines.workspace import Workspace

MIN_FREE_BYTES = 5 << 30


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    recipe: Annotated[str, typer.Option(help="Check what this recipe needs.")] = "demo", json_: JsonOption = False
) -> None:
    """Check environment, assets, ledger and store; exits with the class of the first problem."""
    checks: dict[str, Callable[[], str]] = {
        "packages": lambda: _packages(recipe),
        "device": lambda: _device(recipe),
        "recipe and sources": lambda: _recipe(recipe),
        "ledger": _ledger,
        "free disk": _disk,
    }
    rows, first = [], ExitClass.OK
    for name, check in checks.items():
        try:
            rows.append((name, "ok", check()))
        except M4VError as error:
            rows.append((name, "problem", error.message))
            first = first or error.exit_class
    if json_:
        print_json([{"check": n, "verdict": v, "detail": d} for n, v, d in rows])
    else:
        print_rows(("check", "verdict", "detail"), rows, text=("detail",))
    raise typer.Exit(int(first))


def _packages(recipe: str) -> str:
    from pipelines.environment import check_lock
    from pipelines.recipe import load_recipe

    lock_file = load_recipe(recipe).active_profile.lock_file
    if lock_file is None:
        return "the profile names no lock file"
    check_lock(CODE_ROOT / lock_file)
    return f"as in {lock_file}"


def _device(recipe: str) -> str:
    """What a profile of jobs on machines like this one states as `architecture` and `kernels`: of the GPU, where the
    recipe asks for one or one is there."""
    from pipelines.environment import local_target
    from pipelines.recipe import load_recipe

    profile = load_recipe(recipe).active_profile
    wanted = profile.launcher == "local" and "cuda" in {r.device for r in (profile.default, *profile.stages.values())}
    try:
        target = local_target("cuda")
    except ConfigError as error:
        if wanted:
            raise
        target, note = local_target("cpu"), f"; GPU: {error.what}"
    else:
        note = ""
    return f"{target.device}; architecture: {target.architecture}; kernels: {target.kernels}{note}"


def _recipe(recipe: str) -> str:
    from pipelines.graph import build_graph
    from pipelines.recipe import load_recipe

    nodes = build_graph(load_recipe(recipe))
    for node in nodes:
        if pinned_artifact(node) is None:
            probe_value(node)
    return f"{len(nodes)} stages; assets in {assets_dir()}"


def _ledger() -> str:
    with open_ledger() as ledger:
        return ledger.url


def _disk() -> str:
    home = Workspace.open().home
    free = shutil.disk_usage(home).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(f"only {free >> 20} MiB free", value=str(home), next_step="set M4V_HOME to a larger disk")
    return f"{free >> 30} GiB in {home}"
