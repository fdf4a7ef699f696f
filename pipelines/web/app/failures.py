"""Errors as pages: what is wrong, with which value, and what to do next; never a traceback."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from m4v.core.errors import ConfigError, DataIntegrityError, InfrastructureError, InputError, M4VError, NeedsHuman
from pipelines.web.app.views import page

_STATUS: dict[type[M4VError], int] = {
    InputError: 404, ConfigError: 400, NeedsHuman: 403, InfrastructureError: 503, DataIntegrityError: 500,
}  # fmt: skip
_TITLES = {
    400: "That cannot be", 403: "Not allowed", 404: "Not found", 405: "Not possible here", 409: "Somebody was faster",
    422: "That is no valid address", 500: "Something is damaged", 503: "Not reachable now",
}  # fmt: skip


def status_of(error: M4VError) -> int:
    """The HTTP status that says who must act."""
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(M4VError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unknown)


def error_page(request: Request, status: int, error: M4VError) -> Response:
    return page(request, "error", status=status, title=_TITLES.get(status, "That did not work"), error=error)


def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, M4VError)
    return error_page(request, status_of(error), error)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "there is no such page" if error.status_code == 404 else str(error.detail)
    step = "look among the pages above" if error.status_code == 404 else None
    response = error_page(request, error.status_code, InputError(what, value=request.url.path, next_step=step))
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"][1:])
    return error_page(request, 422, InputError(f"{place}: {first['msg']}", value=first.get("input")))


def _unknown(request: Request, error: Exception) -> Response:
    # The server logs it with its traceback, which is no reader's business.
    fault = M4VError("a fault of m4v", value=type(error).__name__, next_step="the server's log has the details")
    return page(request, "error", status=500, title="A fault of m4v", error=fault)
