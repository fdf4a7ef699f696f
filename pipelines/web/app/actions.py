"""Actions of visitors: refused on a server that only reads and for forms of foreign pages; roles are the domain's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from pipelines.access import Actor, Role
from pipelines.web.app.csrf import FIELD, read_form
from pipelines.web.app.reading import ReadOnly
from pipelines.web.app.site import Site, actor_of, site_of

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Action:
    """A checked form of a visitor's. `form` is without its token."""

    site: Site
    actor: Actor
    form: Mapping[str, str]

    def text(self, name: str) -> str:
        return self.form.get(name, "").strip()

    async def do(self, what: Callable[[], ResultT]) -> ResultT:
        """Run `what`, which waits for the database, beside the server's loop."""
        return await run_in_threadpool(what)


async def begin_action(request: Request) -> Action:
    """Raises ReadOnly on a server that only reads, ForeignForm or InputError for a form that is none of ours."""
    site, actor = site_of(request), actor_of(request)
    if site.read_only:
        raise ReadOnly("this server only reads", next_step="use the command line, or a server without --read-only")
    form = await read_form(request)
    site.guard.check(request, form, actor)
    return Action(site, actor, {name: value for name, value in form.items() if name != FIELD})


def may(request: Request, role: Role) -> bool:
    """Are this role's forms shown to the visitor?"""
    return not site_of(request).read_only and actor_of(request).may(role)
