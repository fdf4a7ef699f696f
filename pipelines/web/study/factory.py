"""The study's application: invitations as addresses, consent, one page a task, an end; no cookies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from eval.study.answers import AnswerStore
from eval.study.records import Study
from m4v.core.errors import InfrastructureError, InputError, M4VError, NeedsHuman
from pipelines import web
from pipelines.web.app.headers import OwnHosts, SecurityHeaders
from pipelines.web.study.pages import router
from pipelines.web.study.site import StudySite, page


def create_study_app(
    study: Study, media: Callable[[str], Path], store: AnswerStore, *, names: Collection[str] = ()
) -> FastAPI:
    """Pages of one study. `media` gives the local path of a file of its videos; `names`: see `create_app`. The store
    closes with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(title=study.title, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.site = StudySite(study, media, store)
    if names:
        app.add_middleware(OwnHosts, names=names)
    app.add_middleware(SecurityHeaders)
    app.add_exception_handler(M4VError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(web.__path__[0]) / "static"), name="static")
    return app


def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, M4VError)
    if isinstance(error, InfrastructureError):
        words = "The server could not keep your answer. Please wait a moment, then go back and send it again."
        return page(request, "message", 503, heading="Not saved", words=words)
    status = 403 if isinstance(error, NeedsHuman) else 404 if isinstance(error, InputError) else 500
    return page(request, "message", status, heading="That did not work", words=f"{error.what}.")


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = "There is no such page. Please open the link of your invitation again."
    return page(request, "message", error.status_code, heading="Nothing here", words=words)
