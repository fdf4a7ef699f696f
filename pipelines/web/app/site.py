"""What all pages of one server share, and the dependencies that hand it to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from pipelines.access import Actor, request_actor
from pipelines.ledger import Ledger
from pipelines.settings import Settings
from pipelines.web.app.csrf import FormGuard
from pipelines.web.app.tasks import Tasks
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Site:
    """`reading` cannot write; `ledger` is for actions, which `read_only` switches off for everybody."""

    workspace: Workspace
    settings: Settings
    ledger: Ledger
    reading: Ledger
    guard: FormGuard
    read_only: bool = False
    tasks: Tasks = field(default_factory=Tasks)

    def close(self) -> None:
        self.reading.close()
        self.ledger.close()


def site_of(request: Request) -> Site:
    return cast(Site, request.app.state.site)


def actor_of(request: Request) -> Actor:
    """Who asks, by the headers of a trusted auth proxy; anybody else is a viewer."""
    peer = request.client.host if request.client else None
    return request_actor(site_of(request).settings.access, request.headers, peer)


def _reading(request: Request) -> Ledger:
    return site_of(request).reading


def _workspace(request: Request) -> Workspace:
    return site_of(request).workspace


SiteDep = Annotated[Site, Depends(site_of)]
ActorDep = Annotated[Actor, Depends(actor_of)]
LedgerDep = Annotated[Ledger, Depends(_reading)]  # reads only
WorkspaceDep = Annotated[Workspace, Depends(_workspace)]
