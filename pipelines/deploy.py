"""Write deployments of a recipe to a Prefect server: the whole pipeline (with its schedule) and every stage.

Runs are picked up by `prefect worker start --pool POOL` on a machine where this package is installed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import Flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron

import pipelines
from m4v.core.errors import ConfigError, InfrastructureError
from pipelines import flows
from pipelines.graph import build_graph
from pipelines.recipe import load_recipe

POOL_TYPE = "process"


@dataclass(frozen=True)
class Deployment:
    """A deployment as written: `flow/name` is what `prefect deployment run` takes."""

    name: str
    deployment_id: str
    flow: str
    cron: str | None

    def to_json(self) -> dict[str, str | None]:
        return asdict(self)


def deploy(
    recipe_name: str,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    cron: str | None = None,
    pool: str = "m4v",
    home: str | None = None,
) -> list[Deployment]:
    """Write the parent deployment and one per stage; running it again updates them.

    Raises ConfigError for a bad recipe or cron line, InfrastructureError when no server answers.
    """
    recipe = load_recipe(recipe_name, overrides)
    nodes = build_graph(recipe)
    schedule = _schedule(cron)
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "deployments need a running Prefect server",
            value="PREFECT_API_URL is not set",
            next_step="prefect server start, then PREFECT_API_URL=http://127.0.0.1:4200/api m4v deploy …",
        )
    asyncio.run(_ensure_pool(pool))
    parameters: dict[str, Any] = {"recipe": _portable(recipe_name), "overrides": list(overrides), "home": home}
    parent = {**parameters, "until": until}
    written = [_write(flows.pipeline, recipe.name, pool, parent, schedule, recipe.description)]
    for node in nodes:
        name = f"{recipe.name}-{node.id.replace('.', '-')}"
        written.append(_write(flows.stage, name, pool, {**parameters, "stage_id": node.id}, None, f"Stage {node.id}"))
    return written


def _portable(recipe_name: str) -> str:
    """A worker has another working directory: a recipe file is named by its absolute path."""
    path = Path(recipe_name)
    return str(path.absolute()) if path.suffix in (".yaml", ".yml") else recipe_name


def _schedule(cron: str | None) -> Any:
    if cron is None:
        return None
    try:
        return Cron(cron, timezone="UTC")
    except ValueError as error:
        raise ConfigError(f"not a cron line: {error}", value=cron, next_step='for example --cron "0 3 * * 1"') from None


async def _ensure_pool(pool: str) -> None:
    try:
        async with get_client() as client:
            try:
                found = await client.read_work_pool(pool)
            except ObjectNotFound:
                await client.create_work_pool(WorkPoolCreate(name=pool, type=POOL_TYPE))
                return
    except (OSError, RuntimeError) as error:
        raise InfrastructureError(
            f"no Prefect server answers: {error}", value=os.environ["PREFECT_API_URL"], next_step="prefect server start"
        ) from None
    if found.type != POOL_TYPE:
        raise ConfigError(
            f"work pool is of type {found.type}, not {POOL_TYPE}", value=pool, next_step="choose another --pool"
        )


def _write(
    source: Flow[..., Any], name: str, pool: str, parameters: dict[str, Any], schedule: Any, description: str
) -> Deployment:
    root = Path(pipelines.__file__).parent.parent
    stored = source.from_source(source=str(root), entrypoint=f"pipelines/flows.py:{source.fn.__name__}")
    identity = stored.deploy(  # type: ignore[union-attr]
        name=name,
        work_pool_name=pool,
        schedule=schedule,
        parameters=parameters,
        description=description,
        # A slow run is not piled upon by its own schedule.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        enforce_parameter_schema=True,
        print_next_steps=False,
        ignore_warnings=True,
        build=False,
        push=False,
    )
    return Deployment(f"{source.name}/{name}", str(identity), source.name, schedule.cron if schedule else None)
