"""An HTTP proxy in front of one server that breaks answers as it is told: by a plan, or by chance from a seed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from m4v.core.rng import generator

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"

FAULTS = (
    "refuse",  # the connection is reset before anything is forwarded
    "lose",  # the request takes effect, its answer is lost
    "500",
    "503",
    "truncate",  # the announced length, half of the body, then the end
    "short",  # half of the body with a length that says so, as a broken cache would
    "slow",  # in drops
    "hang",  # no answer within the client's timeout
    "garble_answer",  # one bit of the body is another
    "garble_request",  # one bit of the body that is sent is another
)
HANG_S = 5.0


class FaultProxy(ThreadingHTTPServer):
    """`plan(number, method, path)` names the fault of a request (numbers count from 1), None for none."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.plan: Plan = lambda number, method, path: None
        self.requests: list[tuple[str, str, str | None]] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        return  # clients go away in the middle here

    def clear(self) -> None:
        self.plan, self.requests = lambda number, method, path: None, []


Plan = Callable[[int, str, str], str | None]


def once(fault: str, method: str, part: str = "") -> Plan:
    """The first request of a method whose path holds `part` goes wrong."""
    left = [1]

    def plan(number: int, asked: str, path: str) -> str | None:
        if asked == method and part in path and left[0]:
            left[0] = 0
            return fault
        return None

    return plan


def always(fault: str, *methods: str, begin: int = 1) -> Plan:
    """Every request of these methods (none given: of all), from the nth such on."""
    seen = [0]

    def plan(number: int, asked: str, path: str) -> str | None:
        if methods and asked not in methods:
            return None
        seen[0] += 1
        return fault if seen[0] >= begin else None

    return plan


def by_chance(seed: int, share: float, faults: tuple[str, ...] = FAULTS) -> Plan:
    def plan(number: int, method: str, path: str) -> str | None:
        draw = generator(seed, number, "fault-proxy")
        return str(draw.choice(faults)) if draw.random() < share else None

    return plan


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *_: object) -> None:
        return

    def _relay(self) -> None:
        proxy = self.server
        body = self._body()
        with proxy.lock:
            fault = proxy.plan(len(proxy.requests) + 1, self.command, self.path)
            proxy.requests.append((self.command, self.path, fault))
        if fault == "refuse":
            return self._reset()
        if fault == "hang":
            time.sleep(HANG_S)
            return self._reset()
        if fault in ("500", "503"):
            return self._send(int(fault), {}, SLOW_DOWN if fault == "503" else INTERNAL)
        if fault == "garble_request":
            body = _garbled(body)
        status, headers, answer = self._upstream(body)
        if fault == "lose":
            return self._reset()
        return self._send(status, headers, answer, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _relay  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        to = self.server.upstream
        connection = HTTPConnection(str(to.hostname), to.port, timeout=300)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        found = dict(answer.getheaders())
        connection.close()
        return answer.status, found, data

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: str | None = None) -> None:
        if fault == "short":
            body = body[: len(body) // 2]
        if fault == "garble_answer" and status < 300:
            body = _garbled(body)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(body, fault)

    def _send_body(self, body: bytes, fault: str | None) -> None:
        if fault == "truncate" and body:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._reset(abrupt=False)
            return
        pieces = 8 if fault == "slow" else 1
        step = max(1, -(-len(body) // pieces))
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            self.wfile.flush()
            if fault == "slow":
                time.sleep(0.01)

    def _reset(self, abrupt: bool = True) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if abrupt:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()


def _garbled(body: bytes) -> bytes:
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :] if body else body


@contextlib.contextmanager
def proxying(upstream: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
