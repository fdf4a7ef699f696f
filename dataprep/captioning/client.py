"""One request to an OpenAI-compatible endpoint, with a clock over the whole answer and a bound on its size."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpcore
import httpx

from dataprep.captioning.config import RecaptionConfig
from dataprep.captioning.deadline import Clock, DeadlineBackend
from m4v.core.canonical import canonical_json
from m4v.core.errors import ConfigError, NeedsHuman

MAX_ANSWER_BYTES = 4 << 20
_RETRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_CONNECT_S = 10.0
_WHERE = "curate.captions.recaption"
_DETAIL_CHARACTERS = 200


class EndpointError(Exception):
    """The endpoint gave no answer to this request. `retry`: another try may help; `wait_s`: it said when."""

    def __init__(self, kind: str, detail: str, *, retry: bool, wait_s: float | None = None) -> None:
        self.kind, self.detail, self.retry, self.wait_s = kind, detail, retry, wait_s
        super().__init__(kind, detail)

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class _Key:
    """A secret that no message shows."""

    value: str

    def __repr__(self) -> str:
        return "***"

    def hide(self, text: str) -> str:
        return text.replace(self.value, "***") if self.value else text


class Endpoint:
    """Shared by the threads of one run; use as a context manager.

    Proxies and `.netrc` of the environment are not used, redirects not followed: pictures and key go where the config
    says, or nowhere. Raises ConfigError when the key's environment variable is not set.
    """

    def __init__(self, config: RecaptionConfig) -> None:
        self._config, self._key, self._clock = config, _key_of(config), Clock()
        url = httpx.URL(f"{config.endpoint}/chat/completions")
        self._url = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        self._headers = {
            "Host": url.netloc.decode(), "User-Agent": "m4v-pipeline", "Content-Type": "application/json",
            "Accept": "application/json", "Accept-Encoding": "identity",
        }  # fmt: skip
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(), max_connections=config.concurrency,
            network_backend=DeadlineBackend(self._clock),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._pool.close()

    def ask(self, body: dict[str, object]) -> bytes:
        """Body of a successful answer.

        Raises EndpointError; ConfigError when key, model or address are refused, NeedsHuman when payment is asked for.
        """
        content = canonical_json(body)
        headers = [*self._headers.items(), ("Content-Length", str(len(content)))]
        if self._key.value:
            headers.append(("Authorization", f"Bearer {self._key.value}"))
        waits = {"connect": _CONNECT_S, "pool": self._config.timeout_s}  # the clock bounds all others
        self._clock.until = time.monotonic() + self._config.timeout_s
        try:
            with self._pool.stream(
                "POST", self._url, headers=headers, content=content, extensions={"timeout": waits}
            ) as response:
                received = _read(response)
        except httpcore.TimeoutException:
            raise EndpointError("timeout", f"no answer within {self._config.timeout_s:g} s", retry=True) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            kind = "unreachable" if isinstance(error, httpcore.ConnectError) else "connection"
            raise EndpointError(kind, self._shown(str(error) or type(error).__name__), retry=True) from None
        if response.status != httpx.codes.OK:
            self._refused(response, received)
        return received

    def _refused(self, response: httpcore.Response, body: bytes) -> None:
        status = response.status
        said = self._shown(body.decode("utf-8", "replace"))
        if status in _RETRY:
            raise EndpointError(f"http_{status}", said, retry=True, wait_s=_retry_after(response))
        if status == httpx.codes.PAYMENT_REQUIRED:
            raise NeedsHuman(
                "the endpoint asks for payment", value=said, where=_WHERE, next_step="settle it, run again"
            )
        if status in (401, 403):
            step = "set api_key_env" if self._config.api_key_env is None else f"correct ${self._config.api_key_env}"
            raise ConfigError(f"the endpoint refuses the key (HTTP {status})", value=said, where=_WHERE, next_step=step)
        if status in (404, 405, 501) or 300 <= status < 400:
            raise ConfigError(
                f"the endpoint does not know model or address (HTTP {status})", value=said, where=_WHERE,
                next_step=f"compare model and endpoint with what {self._config.endpoint}/models lists",
            )  # fmt: skip
        raise EndpointError(f"http_{status}", said, retry=False)

    def _shown(self, text: str) -> str:
        """The beginning of an untrusted text on one line, without the key (some endpoints repeat it)."""
        plain = re.sub(r"<[^>]*>", " ", self._key.hide(text))
        return " ".join("".join(c if c.isprintable() else " " for c in plain).split())[:_DETAIL_CHARACTERS]


def _key_of(config: RecaptionConfig) -> _Key:
    if config.api_key_env is None:
        return _Key("")
    value = os.environ.get(config.api_key_env, "").strip()
    if not value or not value.isascii() or not value.isprintable():
        raise ConfigError(
            "the endpoint's key is not in the environment" if not value else "the endpoint's key is no plain text",
            value=config.api_key_env, where=_WHERE, next_step=f"export {config.api_key_env}=…",
        )  # fmt: skip
    return _Key(value)


def _read(response: httpcore.Response) -> bytes:
    """All of a body; raises EndpointError when it is too long."""
    received = bytearray()
    for chunk in response.iter_stream():
        received += chunk
        if len(received) > MAX_ANSWER_BYTES:
            raise EndpointError("too_large", f"an answer of over {MAX_ANSWER_BYTES >> 20} MiB", retry=False)
    return bytes(received)


def _retry_after(response: httpcore.Response) -> float | None:
    """Seconds that a `Retry-After` header asks to wait: a number, or a date."""
    given = (value for name, value in response.headers if name.lower() == b"retry-after")
    value = next(given, b"").decode("latin-1").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
