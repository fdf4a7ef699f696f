"""Archives as they are published, whole, split and hostile, and a small HTTP server that answers range requests."""

from __future__ import annotations

import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def split(path: Path, parts: int) -> list[Path]:
    """Cut `NAME.zip` into `NAME_partaa`, … and remove it."""
    data = path.read_bytes()
    size = -(-len(data) // parts)
    made = []
    for number in range(parts):
        part = path.with_name(f"{path.stem}_parta{chr(ord('a') + number)}")
        part.write_bytes(data[number * size : (number + 1) * size])
        made.append(part)
    path.unlink()
    return made


def make_tar(path: Path, members: list[tuple[str, bytes | tarfile.TarInfo]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


class Served:
    """What a server was asked: paths with the bytes sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: list[tuple[str, int]] = []

    @property
    def total(self) -> int:
        return sum(size for _, size in self.sent)


@contextmanager
def served(root: Path) -> Iterator[Served]:
    """Serve a folder on the loopback interface, ranges included."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = root / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, status = path.read_bytes(), 200
            total = len(data)
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if match:
                first, last = int(match[1]), min(int(match[2] or total), total - 1)
                data, status = data[first : last + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            if match:
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.end_headers()
            if body:
                with suppress(ConnectionError):  # a client that only asks whether a file is there goes away
                    self.wfile.write(data)
                    record.sent.append((self.path, len(data)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    record = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
