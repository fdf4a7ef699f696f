"""Templates to responses: every page gets the navigation, the visitor and the addresses of shared files."""

from __future__ import annotations

from functools import cache
from importlib import resources
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from m4v.core.canonical import digest_bytes
from pipelines.ledger.types import iso
from pipelines.web import render
from pipelines.web.app.attempt_view import exit_words
from pipelines.web.app.run_list import progress_of
from pipelines.web.app.site import actor_of, site_of

# Key, title and address of every page of the navigation.
NAVIGATION = (
    ("runs", "Runs", "/runs"),
    ("stages", "Stages", "/stages"),
    ("artifacts", "Artifacts", "/artifacts"),
    ("clips", "Clips", "/clips"),
    ("compare", "Compare", "/compare"),
    ("channels", "Channels", "/channels"),
    ("evaluation", "Evaluation", "/evaluation"),
    ("plan", "Plan", "/plan"),
)


def page(request: Request, template: str, *, here: str = "", status: int = 200, **values: object) -> HTMLResponse:
    """A whole page: `app/<template>.html.jinja`, which extends `app/base.html.jinja`. `here`: its key in NAVIGATION."""
    site, actor = site_of(request), actor_of(request)
    shared = {"request": request, "here": here, "actor": actor, "site": site, "form_token": site.guard.token}
    response = HTMLResponse(fragment(template, **shared, **values), status)
    site.guard.keep(request, response)
    return response


def fragment(template: str, **values: object) -> str:
    """HTML of a part of a page, as htmx asks for it."""
    return environment().get_template(f"app/{template}.html.jinja").render(**values)


def is_partial(request: Request) -> bool:
    """Did htmx ask, for a part of a page that is shown already?"""
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-request-type") != "full"


@cache
def environment() -> Environment:
    """The report's templates and filters, with what only a server's pages need."""
    base = render.environment()
    env = base.overlay()
    env.globals = {**base.globals, "navigation": NAVIGATION, "static": static_address, "query": query}
    env.filters = {**base.filters, "iso": iso, "progress_of": progress_of, "exit_words": exit_words}
    return env


@cache
def static_address(name: str) -> str:
    """Address of a file of `static/`; it changes with the file, so browsers may keep it for ever."""
    data = (resources.files("pipelines.web") / "static" / name).read_bytes()
    return f"/static/{name}?v={digest_bytes(data)[:12]}"


def query(values: dict[str, object], **changes: object) -> str:
    """`?a=b&…` of the values that are set, some of them changed; empty when none is."""
    kept = {k: v for k, v in {**values, **changes}.items() if v not in (None, "")}
    return "?" + urlencode(kept, doseq=True) if kept else "?"
