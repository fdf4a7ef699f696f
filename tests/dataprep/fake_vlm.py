"""A local OpenAI-compatible endpoint that behaves as it is told, or misbehaves, and counts what it was asked."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = "A red bicycle leans on a wall of grey stone while people walk past it in the soft light of the morning."
USAGE = {"prompt_tokens": 1000, "completion_tokens": 50}
Reply = Callable[["Handler", dict[str, Any]], None]


def completion(content: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": USAGE, **more}


def caption(text: str = GOOD, finish: str = "stop") -> Reply:
    return says(json.dumps({"caption": text}), finish)


def says(content: str | None, finish: str = "stop") -> Reply:
    return raw(200, json.dumps(completion(content, finish)))


def raw(status: int, body: str | bytes, headers: dict[str, str] | None = None) -> Reply:
    data = body.encode() if isinstance(body, str) else body

    def reply(handler: Handler, asked: dict[str, Any]) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def slow(seconds: float, then: Reply | None = None) -> Reply:
    def reply(handler: Handler, asked: dict[str, Any]) -> None:
        time.sleep(seconds)
        (then or caption())(handler, asked)

    return reply


def together(server: FakeVlm, count: int, then: Reply) -> Reply:
    """None is answered before so many requests have been open at a time."""

    def reply(handler: Handler, asked: dict[str, Any]) -> None:
        deadline = time.monotonic() + 100
        while server.most_open < count and time.monotonic() < deadline:
            time.sleep(0.005)
        then(handler, asked)

    return reply


def reset_in_body(handler: Handler, asked: dict[str, Any]) -> None:
    """Half an answer, then a reset of the connection."""
    data = json.dumps(completion(json.dumps({"caption": GOOD}))).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())  # `close` would wait for the handler's own files


def dribble(handler: Handler, asked: dict[str, Any]) -> None:
    """A byte now and then, to the end of all patience: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def dribble_head(handler: Handler, asked: dict[str, Any]) -> None:
    """Headers without end, one now and then."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100):
        handler.wfile.write(b"X-%d: y\r\n" % number)
        handler.wfile.flush()
        time.sleep(0.05)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVlm

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vlm = self.server
        with vlm.lock:
            number = len(vlm.asked)
            vlm.asked.append(body)
            vlm.paths.append(self.path)
            vlm.headers.append(dict(self.headers))
            vlm.open += 1
            vlm.most_open = max(vlm.most_open, vlm.open)
        try:
            vlm.reply_to(number, body)(self, body)
        except OSError:
            self.close_connection = True  # the client went away
        finally:
            with vlm.lock:
                vlm.open -= 1

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class FakeVlm(ThreadingHTTPServer):
    """`script`: the replies in order of arrival, the last one for ever; or a function of the request."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, script: list[Reply] | Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.open = self.most_open = 0

    def reply_to(self, number: int, body: dict[str, Any]) -> Reply:
        if callable(self.script):
            return self.script(body)
        return self.script[min(number, len(self.script) - 1)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the play."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(*script: Reply, by: Callable[[dict[str, Any]], Reply] | None = None) -> Iterator[FakeVlm]:
    server = FakeVlm(by or list(script) or [caption()])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def texts_in(body: dict[str, Any]) -> str:
    """All text of the user's message."""
    return "\n".join(p["text"] for p in body["messages"][1]["content"] if p["type"] == "text")


def pictures_in(body: dict[str, Any]) -> list[str]:
    return [p["image_url"]["url"] for p in body["messages"][1]["content"] if p["type"] == "image_url"]


def nonce_in(body: dict[str, Any]) -> str:
    found = re.search(r"NONCE is (\w+)\.", body["messages"][0]["content"])
    assert found is not None
    return found[1]
