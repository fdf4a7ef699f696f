"""Forms that only our own pages can send: a token bound to a cookie and to the actor, and a check of the origin.

The cookie is `SameSite=Strict` and unreadable to scripts; the token is its HMAC with the server's secret and the
actor's name, so neither a foreign page nor a cookie planted by a neighbouring host can make one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request, Response

from m4v.core.errors import InputError, NeedsHuman
from pipelines.access import AccessConfig, Actor

COOKIE = "m4v_form"
FIELD = "form_token"
MAX_FORM_BYTES = 64 * 1024
_FORM_TYPE = "application/x-www-form-urlencoded"
_HALF_DAY_S = 12 * 3600


class ForeignForm(NeedsHuman):
    """A form that did not come from a page of this server, or from one that is too old."""


class FormGuard:
    """Makes and checks form tokens. Its secret lives as long as the server's process."""

    def __init__(self, access: AccessConfig) -> None:
        self._secret = secrets.token_bytes(32)
        self._access = access

    def token(self, request: Request, actor: Actor) -> str:
        """The token for forms of the page that answers `request`; `keep` then sets the cookie it belongs to."""
        seed = request.cookies.get(COOKIE, "")
        if not _plausible(seed):
            seed = getattr(request.state, "form_seed", None) or secrets.token_urlsafe(32)
            request.state.form_seed = seed
        return self._sign(seed, actor)

    def keep(self, request: Request, response: Response) -> None:
        """Set the cookie where `token` drew a new one."""
        seed = getattr(request.state, "form_seed", None)
        if seed is not None:
            response.set_cookie(
                COOKIE, seed, max_age=_HALF_DAY_S, httponly=True, samesite="strict", path="/",
                secure=self._scheme(request) == "https",
            )  # fmt: skip

    def check(self, request: Request, form: Mapping[str, str], actor: Actor) -> None:
        """Raises ForeignForm unless the form was sent by a page that this server made for this actor."""
        if not self._own_origin(request):
            raise ForeignForm(
                "the form was sent from another site", value=request.headers.get("origin"),
                next_step="open the page of this server and send its form",
            )  # fmt: skip
        seed = request.cookies.get(COOKIE, "")
        given = form.get(FIELD, "")
        if not _plausible(seed) or not hmac.compare_digest(given.encode(), self._sign(seed, actor).encode()):
            raise ForeignForm(
                "the form's token does not belong to you or is too old", next_step="open the page again and repeat"
            )

    def _sign(self, seed: str, actor: Actor) -> str:
        return hmac.new(self._secret, f"{seed}\0{actor.name}".encode(), hashlib.sha256).hexdigest()

    def _own_origin(self, request: Request) -> bool:
        """Browsers name the origin of every form; one that names none is not trusted with actions."""
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        origin = request.headers.get("origin")
        if origin is None:
            return False
        sent = urlsplit(origin)
        return sent.scheme in ("http", "https") and sent.netloc.lower() in self._own_hosts(request)

    def _own_hosts(self, request: Request) -> set[str]:
        hosts = {request.headers.get("host", "").lower()}
        if self._from_proxy(request):
            hosts |= {h.strip().lower() for h in request.headers.get("x-forwarded-host", "").split(",")}
        return hosts - {""}

    def _scheme(self, request: Request) -> str:
        forwarded = request.headers.get("x-forwarded-proto", "") if self._from_proxy(request) else ""
        return forwarded.split(",")[0].strip() or request.url.scheme

    def _from_proxy(self, request: Request) -> bool:
        return self._access.trusts(request.client.host if request.client else None)


def _plausible(seed: str) -> bool:
    return len(seed) >= 40


async def read_form(request: Request) -> dict[str, str]:
    """Fields of a small URL-encoded form, the last value of each; raises InputError for anything else."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != _FORM_TYPE:
        raise InputError("this is no form", value=request.headers.get("content-type"), next_step=f"send {_FORM_TYPE}")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise InputError("the form is too large", value=len(body), next_step=f"send at most {MAX_FORM_BYTES} bytes")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=100))
    except ValueError:
        raise InputError("the form cannot be read", next_step=f"send {_FORM_TYPE} in UTF-8") from None
