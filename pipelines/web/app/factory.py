"""The application: pages found by module, shared files, errors as pages, headers on everything."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.staticfiles import StaticFiles

from pipelines import web
from pipelines.ledger import Ledger
from pipelines.settings import load_settings
from pipelines.web.app import pages
from pipelines.web.app.csrf import FormGuard
from pipelines.web.app.failures import add_handlers
from pipelines.web.app.headers import OwnHosts, SecurityHeaders
from pipelines.web.app.reading import reading_ledger
from pipelines.web.app.site import Site
from pipelines.workspace import Workspace


def create_app(workspace: Workspace, *, read_only: bool = False, names: Collection[str] = ()) -> FastAPI:
    """Pages over the workspace's ledger and store; `read_only` switches every action off, whatever a visitor's role.
    `names`: the only host names to answer to; none: any.

    Opens (and migrates) the ledger at once: raises ConfigError or InfrastructureError when that cannot be.
    """
    site = _open_site(workspace, read_only)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        site.close()

    app = FastAPI(title="M4V", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.site = site
    if names:
        app.add_middleware(OwnHosts, names=names)
    app.add_middleware(SecurityHeaders)
    add_handlers(app)
    for router in _routers():
        app.include_router(router)
    folder = Path(web.__path__[0]) / "static"
    app.mount("/static", StaticFiles(directory=folder), name="static")
    return app


def _open_site(workspace: Workspace, read_only: bool) -> Site:
    settings = load_settings(workspace)
    ledger = Ledger.open(workspace.ledger_url)
    return Site(
        workspace=workspace, settings=settings, ledger=ledger, reading=reading_ledger(workspace.ledger_url),
        guard=FormGuard(settings.access), read_only=read_only,
    )  # fmt: skip


def _routers() -> Iterator[APIRouter]:
    for found in sorted(pkgutil.iter_modules(pages.__path__), key=lambda m: m.name):
        yield importlib.import_module(f"{pages.__name__}.{found.name}").router
