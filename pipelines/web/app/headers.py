"""Headers of every response: nothing from elsewhere is loaded, nothing of ours is framed or guessed at."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Styles may stand in the page: the graph library sets its own, and bars their widths.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class SecurityHeaders:
    """Adds the policy to responses that bring none of their own. Plain ASGI, so that streams stay streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers[name] = value
                headers.setdefault("content-security-policy", POLICY)
                versioned = scope["path"].startswith("/static/") and b"v=" in scope["query_string"]
                headers.setdefault("cache-control", "public, max-age=31536000, immutable" if versioned else "no-cache")
            await send(message)

        await self._app(scope, receive, with_headers)


class OwnHosts:
    """Answers only requests for one of `names`: a foreign page that has its own name point to this machine would
    otherwise read what a server on the loopback address shows."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _name(Headers(scope=scope).get("host", "")) not in self._names:
            refusal = PlainTextResponse("this server does not answer under that name; use localhost\n", 421)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """The host of a Host header, without its port."""
    bracket = host.rfind("]")
    return (host[: bracket + 1] if bracket > 0 else host.rpartition(":")[0] or host).lower()
