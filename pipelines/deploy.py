"""Write deployments of a recipe to a Prefect server: the whole pipeline (with its schedule), every stage, and the
reconciliation of the home.

Runs are picked up by `prefect worker start --pool POOL` on a machine where this package is installed; the
worker's M4V_HOME, M4V_STORE and M4V_LEDGER say where they write.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import Flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import ParameterSchema

from m4v.core.errors import ConfigError, InfrastructureError
from pipelines import flows
from pipelines.graph import build_graph
from pipelines.recipe import Recipe, load_recipe
from pipelines.reconcile.flow import reconcile

POOL_TYPE = "process"


class _ClosedSchema(ParameterSchema):
    """Prefect's schemas let unknown parameters pass the server and fail in the worker; these do not."""

    additionalProperties: bool  # noqa: N815 - a keyword of JSON schema


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
    reconcile_cron: str | None = None,
) -> list[Deployment]:
    """Write the parent deployment, one per stage and, given its schedule, the reconciliation's; again updates them.

    Raises ConfigError for a bad recipe or cron line, InfrastructureError when no server answers.
    """
    recipe = load_recipe(recipe_name, overrides)
    nodes = build_graph(recipe)
    schedule, reconciling = _schedule(cron), _schedule(reconcile_cron)
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "deployments need a running Prefect server",
            value="PREFECT_API_URL is not set",
            next_step="prefect server start, then PREFECT_API_URL=http://127.0.0.1:4200/api m4v deploy …",
        )
    asyncio.run(_ensure_pool(pool))
    parameters: dict[str, Any] = {
        "recipe": _portable(recipe_name),
        "overrides": [*overrides, *_portable_locations(recipe)],
        "home": str(Path(home).absolute()) if home else None,
    }
    parent = {**parameters, "until": until}
    written = [_write(flows.pipeline, recipe.name, pool, parent, schedule, recipe.description)]
    for node in nodes:
        name = f"{recipe.name}-{node.id.replace('.', '-')}"
        written.append(_write(flows.stage, name, pool, {**parameters, "stage_id": node.id}, None, f"Stage {node.id}"))
    if reconciling is not None:  # a deployment of another recipe leaves the schedule of this home alone
        about = "Holds ledger, cluster jobs and flow runs against each other"
        written.append(_write(reconcile, _place(pool, home), pool, {"home": parameters["home"]}, reconciling, about))
    return written


def _place(pool: str, home: str | None) -> str:
    """The name of what concerns one home of a pool's workers."""
    return pool if home is None else f"{pool}-{'-'.join(Path(home).absolute().parts[1:])}"


def _portable(recipe_name: str) -> str:
    """A worker has another working directory: a recipe file is named by its absolute path."""
    path = Path(recipe_name)
    return str(path.absolute()) if path.suffix in (".yaml", ".yml") else recipe_name


def _portable_locations(recipe: Recipe) -> list[str]:
    """Overrides that name every relative directory by its absolute path."""
    relative = [
        s for s in recipe.sources if s.location and ":" not in s.location and not Path(s.location).is_absolute()
    ]
    return [f"sources.{s.name}.location={Path(s.location or '').absolute()}" for s in relative]


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
                # A worker that starts at this moment makes its pool too: whoever comes second takes the first one's.
                with suppress(ObjectAlreadyExists):
                    await client.create_work_pool(WorkPoolCreate(name=pool, type=POOL_TYPE))
                found = await client.read_work_pool(pool)
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
    prepared: Any = source.to_deployment(
        name=name,
        schedule=schedule,
        parameters=parameters,
        description=description,
        # A slow run is not piled upon by its own schedule.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        enforce_parameter_schema=True,
        # Workers import the installed package: no path of this machine is in a deployment.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    known = prepared._parameter_openapi_schema
    prepared._parameter_openapi_schema = _ClosedSchema(**known.model_dump(), additionalProperties=False)
    identity = prepared.apply(work_pool_name=pool)
    return Deployment(f"{source.name}/{name}", str(identity), source.name, schedule.cron if schedule else None)
