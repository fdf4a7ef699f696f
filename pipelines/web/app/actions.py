"""Actions of visitors: refused on a server that only reads and for forms of foreign pages; roles are the domain's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from m4v.core.errors import ConfigError, InputError
from pipelines.access import Actor, Role
from pipelines.web.app.csrf import FIELD, read_form
from pipelines.web.app.reading import ReadOnly
from pipelines.web.app.site import Site, actor_of, site_of
from pipelines.web.app.tasks import Outcome, Tell

ResultT = TypeVar("ResultT")
_MOMENT_S = 1.5


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


class Stale(InputError):
    """What was confirmed is no longer what would be done."""


def check_confirmed(action: Action, digest: str, what: str) -> None:
    """Has the visitor seen what will be done (`digest` of it), and ticked that it shall be?

    Raises Stale when it has changed since, InputError without the tick.
    """
    if action.text("expect") != digest:
        raise Stale(f"{what} has changed since you looked", next_step="look again at what stands here now, and confirm")
    if action.text("confirm") != "yes":
        raise ConfigError("it was not confirmed", next_step="tick the box beside the button")


async def begin_task(action: Action, name: str, do: Callable[[Tell], Outcome]) -> Response:
    """To the page that shows what was done, or, when that takes longer than a moment, to the page that follows it.

    Raises what the work raised within that moment.
    """
    task = action.site.tasks.begin(name, action.actor, do)
    await action.do(lambda: task.wait(_MOMENT_S))
    if task.error is not None:
        raise task.error
    return RedirectResponse(f"/tasks/{task.task_id}", 303)
