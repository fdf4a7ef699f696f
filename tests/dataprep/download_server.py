"""An HTTP server on loopback that misbehaves by path, for tests of the downloader. It counts what it was asked.

Files are `/NAME` of `files`; `rules[NAME]` are the answers to the first requests for it, in order, and after them
it behaves. `python -m` is not meant; import it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def video(size: int = 4000, tag: int = 0) -> bytes:
    """Bytes that begin like an MP4 file and differ by `tag`."""
    return b"\x00\x00\x00\x18ftypisom" + bytes((i * 7 + tag) % 251 for i in range(size - 12))


@dataclass
class Seen:
    name: str
    range: str | None
    if_range: str | None
    at: float
    host: str


@dataclass
class Site:
    """What the server holds and what it saw."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    rules: dict[str, list[Rule]] = field(default_factory=dict)
    ranges: bool = True
    seen: list[Seen] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, name: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{name}"

    def put(self, name: str, data: bytes, *rules: Rule, etag: str | None = '"v1"') -> str:
        self.files[name] = data
        if etag:
            self.etags[name] = etag
        self.rules[name] = list(rules)
        return self.url(name)

    def asked(self, name: str) -> list[Seen]:
        return [s for s in self.seen if s.name == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site, name = self.site, self.path.lstrip("/")
        with site.lock:
            headers = self.headers
            site.seen.append(Seen(name, headers["Range"], headers["If-Range"], time.monotonic(), headers["Host"]))
            rules = site.rules.get(name, [])
            rule = rules.pop(0) if rules else serve
            site.active += 1
            site.most_active = max(site.most_active, site.active)
        try:
            rule(self, name)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with site.lock:
                site.active -= 1

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()


Rule = Callable[[Handler, str], None]


def body_of(handler: Handler, name: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a well-behaved answer."""
    site = handler.site
    if name not in site.files:
        return 404, b"<html>not found</html>", {}
    data, etag = site.files[name], site.etags.get(name)
    headers = {"ETag": etag} if etag else {}
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    if not asked or not site.ranges or handler.headers["If-Range"] not in (None, etag):
        return 200, data, headers
    start = int(asked[1])
    if start >= len(data):
        return 416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"}
    return 206, data[start:], {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}


def serve(handler: Handler, name: str) -> None:
    status, data, headers = body_of(handler, name)
    handler.head(status, len(data), **headers)
    handler.wfile.write(data)


def status(code: int, **headers: str) -> Rule:
    def rule(handler: Handler, name: str) -> None:
        text = b"<html><body>error</body></html>"
        handler.head(code, len(text), **headers)
        handler.wfile.write(text)

    return rule


def cut(after: int, reset: bool = False) -> Rule:
    """Announce the whole body, send `after` bytes of it, then close (or reset) the connection."""

    def rule(handler: Handler, name: str) -> None:
        code, data, headers = body_of(handler, name)
        handler.head(code, len(data), **headers)
        handler.wfile.write(data[:after])
        handler.wfile.flush()
        handler.close_connection = True
        if reset:
            time.sleep(0.05)  # let what was sent arrive
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            handler.connection.shutdown(socket.SHUT_RDWR)

    return rule


HANG_S = 20.0


def hang(handler: Handler, name: str) -> None:
    """No answer, to a client that waits less than HANG_S for one."""
    time.sleep(HANG_S)
    handler.close_connection = True


def slow(pieces: int, pause_s: float) -> Rule:
    def rule(handler: Handler, name: str) -> None:
        code, data, headers = body_of(handler, name)
        handler.head(code, len(data), **headers)
        step = -(-len(data) // pieces)
        for at in range(0, len(data), step):
            handler.wfile.write(data[at : at + step])
            handler.wfile.flush()
            time.sleep(pause_s)

    return rule


def half_until(go: threading.Event) -> Rule:
    """Half of the body, and the rest once `go` is set."""

    def rule(handler: Handler, name: str) -> None:
        code, data, headers = body_of(handler, name)
        handler.head(code, len(data), **headers)
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        go.wait(300)
        handler.wfile.write(data[len(data) // 2 :])

    return rule


def redirect(to: str) -> Rule:
    def rule(handler: Handler, name: str) -> None:
        handler.head(302, 0, Location=to)

    return rule


def answer(data: bytes, **headers: str) -> Rule:
    """Status 200 with another body than the file's."""

    def rule(handler: Handler, name: str) -> None:
        handler.head(200, len(data), **headers)
        handler.wfile.write(data)

    return rule


def chunked(handler: Handler, name: str) -> None:
    """No announced length."""
    data = body_of(handler, name)[1]
    handler.head(200, None, Transfer_Encoding="chunked")
    for at in range(0, len(data), 1000):
        piece = data[at : at + 1000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is what tests are about: the traceback of this thread would stand
        among the errors of the program under test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    server = _Server(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
