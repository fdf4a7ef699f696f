"""Connections that give up at one point in time, however slowly bytes arrive: head, body and handshake alike."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore


class Clock(threading.local):
    """When the request of this thread must be over, on the monotonic clock."""

    until = float("inf")

    def left(self, timeout_s: float | None) -> float:
        """Seconds to wait at most; raises httpcore.ReadTimeout when there are none."""
        left = min(self.until - time.monotonic(), float("inf") if timeout_s is None else timeout_s)
        if left <= 0:
            raise httpcore.ReadTimeout("past the deadline")
        return left


class DeadlineBackend(httpcore.SyncBackend):
    """Network of an `httpcore.ConnectionPool` whose waits all end when `clock` says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = super().connect_tcp(host, port, self._clock.left(timeout), local_address, socket_options)
        return _Stream(stream, self._clock)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, clock: Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._clock.left(timeout)), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
