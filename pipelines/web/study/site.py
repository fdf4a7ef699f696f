"""What the study's pages share: the study, its videos and answers, and templates to responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from eval.study.answers import AnswerStore
from eval.study.records import Study
from pipelines.web import render
from pipelines.web.app.views import static_address


@dataclass(frozen=True)
class StudySite:
    study: Study
    media: Callable[[str], Path]
    store: AnswerStore


def site_of(request: Request) -> StudySite:
    return cast(StudySite, request.app.state.site)


SiteDep = Annotated[StudySite, Depends(site_of)]


def page(request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
    """A whole page: `study/<template>.html.jinja`. It is kept nowhere: its address is the invitation."""
    text = environment().get_template(f"study/{template}.html.jinja").render(study=site_of(request).study, **values)
    return HTMLResponse(text, status, headers={"cache-control": "no-store"})


@cache
def environment() -> Environment:
    base = render.environment()
    env = base.overlay()
    env.globals = {**base.globals, "static": static_address}
    return env
