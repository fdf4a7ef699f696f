"""HTTP GET for untrusted URLs: addresses are checked where the connection is made, every redirect like a first URL.

Proxies of the environment are not used: behind one, nobody here would see which address is connected to.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import httpx

from dataprep.download.addresses import AddressGuard
from dataprep.download.config import DownloadConfig
from dataprep.download.outcome import RETRY_STATUSES, FetchError
from dataprep.download.urls import PRIVATE, url_problem

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Answer:
    """Head of an answer whose body is read from `body`; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    url: str
    body: Iterator[bytes]


class PinnedBackend(httpcore.SyncBackend):
    """Connects to addresses that the guard gave for the host, never to the name."""

    def __init__(self, guard: AddressGuard) -> None:
        super().__init__()
        self._guard = guard

    def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        last: Exception | None = None
        for address in self._guard.addresses(host, port):
            try:
                return super().connect_tcp(address, port, *args, **kwargs)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        assert last is not None
        raise last


class Client:
    """Shared by the threads of one download. Close it when done."""

    def __init__(self, config: DownloadConfig, guard: AddressGuard | None = None) -> None:
        self._config = config
        self._guard = guard or AddressGuard(config.allow)
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,  # the schedule limits them, by host
            max_keepalive_connections=config.concurrency,
            keepalive_expiry=15.0,
            network_backend=PinnedBackend(self._guard),
        )

    def close(self) -> None:
        self._pool.close()

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """The first answer that is no redirect, whatever its status. Raises FetchError."""
        self._check(url, "unsafe_url")
        for _ in range(self._config.max_redirects + 1):
            with self._request(url, headers) as answer:
                if answer.status not in _REDIRECTS or "location" not in answer.headers:
                    yield answer
                    return
                url = self._target(url, answer.headers["location"])
        raise FetchError("too_many_redirects", f"more than {self._config.max_redirects}")

    def _target(self, url: str, location: str) -> str:
        """Where a redirect leads; raises FetchError `unsafe_redirect`."""
        try:
            target = httpx.URL(url).join(location)
        except (httpx.InvalidURL, ValueError):
            raise FetchError("unsafe_redirect", "to what is no URL") from None
        self._check(str(target), "unsafe_redirect", "to ")
        return str(target)

    def _check(self, url: str, reason: str, prefix: str = "") -> None:
        if problem := url_problem(url, self._guard.allows_host):
            raise FetchError("private_address" if problem == PRIVATE else reason, f"{prefix}a URL that {problem}")

    @contextlib.contextmanager
    def _request(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise FetchError("unsafe_url", "not a URL") from None
        sent = {"Host": parsed.netloc.decode(), "User-Agent": self._config.user_agent, "Accept": "*/*",
                "Accept-Encoding": "identity", **headers}  # fmt: skip
        core = httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
        read, connect = self._config.read_timeout_s, self._config.connect_timeout_s
        timeout = {"connect": connect, "read": read, "write": read, "pool": connect}
        with transport_faults():
            response = self._pool.handle_request(
                httpcore.Request("GET", core, headers=list(sent.items()), extensions={"timeout": timeout})
            )
        try:
            yield Answer(response.status, _headers(response), url, _body(response))
        finally:
            with contextlib.suppress(Exception):  # what it had to say has been heard
                response.close()


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _body(response: httpcore.Response) -> Iterator[bytes]:
    stream = iter(response.iter_stream())
    while True:
        with transport_faults():
            chunk = next(stream, None)
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def transport_faults() -> Iterator[None]:
    """Turn faults of connection and protocol into FetchError with `retry`."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise FetchError("timeout", type(error).__name__, retry=True) from None
    except httpcore.ConnectError as error:
        cause = error.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchError("tls", cause.verify_message) from None
        raise FetchError("unreachable", str(error), retry=True, host=True) from None
    except (OSError, httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
        # A body that ends before its announced length comes here as a protocol error.
        raise FetchError("connection_lost", str(error), retry=True) from None
    except httpcore.UnsupportedProtocol as error:
        raise FetchError("unsafe_url", str(error)) from None


def status_error(answer: Answer) -> FetchError:
    """The failure that a status other than 200 and 206 is."""
    retry = answer.status in RETRY_STATUSES
    after = retry_after_s(answer.headers.get("retry-after")) if retry else None
    return FetchError(f"http_{answer.status}", retry=retry, after_s=after, host=answer.status in (429, 503))


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date; None when there is none that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
