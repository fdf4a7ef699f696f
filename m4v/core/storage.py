"""One interface over a local directory or an `s3://` prefix (through fsspec/s3fs).

Every write is atomic for a reader: local files are written beside their place, synced and renamed; an S3
object appears only when its upload completes. Credentials and endpoints come from the environment
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …), never from a recipe.
"""

from __future__ import annotations

import builtins
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import fsspec

from m4v.core.canonical import digest_file
from m4v.core.errors import InfrastructureError, InputError


class StoredFile(NamedTuple):
    """A file below a storage root: relative path and size in bytes."""

    path: str
    size_bytes: int


def _check_relative(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or "\x00" in path or ".." in parts:
        raise InputError("path is not a plain relative path", value=path, next_step="use a/b/c below the root")
    return path


class Storage:
    """Files below one root URI. Missing files raise InputError, transport faults InfrastructureError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())
        self.is_local = "://" not in self.uri or self.uri.startswith("file://")
        if self.is_local:
            self.uri = self.uri.removeprefix("file://")
            self._fs, self._root = None, self.uri
        else:
            # Listing caches would hide what another process has just published.
            self._fs, self._root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> Storage:
        return Storage(f"{self.uri}/{_check_relative(path)}")

    @property
    def local_root(self) -> Path:
        """Directory of a local storage; raises InputError for a remote one."""
        if not self.is_local:
            raise InputError("a local directory is needed", value=self.uri, next_step="copy it with `fetch` first")
        return Path(self._root)

    def _full(self, path: str) -> str:
        return f"{self._root}/{_check_relative(path)}" if path else self._root

    def exists(self, path: str = "") -> bool:
        if self._fs is None:
            return Path(self._full(path)).exists()
        with _transport(self.uri):
            return bool(self._fs.exists(self._full(path)))

    def open(self, path: str) -> BinaryIO:
        """Open for reading, seekable."""
        try:
            if self._fs is None:
                return cast(BinaryIO, Path(self._full(path)).open("rb"))
            with _transport(self.uri):
                return cast(BinaryIO, self._fs.open(self._full(path), "rb"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError("file does not exist", value=path, where=self.uri) from None

    def read_bytes(self, path: str) -> bytes:
        with self.open(path) as stream, _transport(self.uri):
            return stream.read()

    def write_bytes(self, path: str, data: bytes) -> None:
        if self._fs is None:
            write_atomic(Path(self._full(path)), data)
            return
        with _transport(self.uri):
            self._fs.pipe_file(self._full(path), data)

    def put_file(self, source: Path, path: str) -> None:
        """Copy a local file in."""
        if self._fs is None:
            target = Path(self._full(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            shutil.copyfile(source, temporary)
            _sync_and_rename(temporary, target)
            return
        with _transport(self.uri):
            self._fs.put_file(str(source), self._full(path))

    def fetch(self, path: str, target: Path, sha256: str | None = None) -> Path:
        """Copy a file out to `target`, keeping one that is there and whose digest agrees."""
        if target.exists() and sha256 is not None and digest_file(target) == sha256:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self.open(path) as stream, temporary.open("wb") as out, _transport(self.uri):
            shutil.copyfileobj(stream, out, 1 << 20)
        _sync_and_rename(temporary, target)
        return target

    def list(self, path: str = "") -> Iterator[StoredFile]:
        """All files below `path`, sorted by path; hidden temporaries of unfinished writes are left out."""
        if self._fs is None:
            base = Path(self._full(path))
            for file in sorted(p for p in base.rglob("*") if p.is_file()):
                if not (file.name.startswith(".") and file.name.endswith(".tmp")):
                    yield StoredFile(file.relative_to(self._root).as_posix(), file.stat().st_size)
            return
        with _transport(self.uri):
            found = self._fs.find(self._full(path), detail=True)
        for name in sorted(found):
            yield StoredFile(name[len(self._root) :].lstrip("/"), int(found[name]["size"]))

    def directories(self, path: str = "") -> builtins.list[str]:
        """Names of the direct sub-directories of `path`."""
        if self._fs is None:
            base = Path(self._full(path))
            return sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []
        with _transport(self.uri):
            try:
                rows = self._fs.ls(self._full(path), detail=True)
            except FileNotFoundError:
                return []
        return sorted(r["name"].rstrip("/").rsplit("/", 1)[-1] for r in rows if r["type"] == "directory")

    def delete(self, path: str) -> None:
        """Delete a file or a whole tree; nothing there is not an error."""
        if self._fs is None:
            target = Path(self._full(path))
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            return
        with _transport(self.uri):
            if self._fs.exists(self._full(path)):
                self._fs.rm(self._full(path), recursive=True)

    def move_tree(self, source: str, target: str, last: str) -> None:
        """Move a tree below this root; file `last` (the manifest) arrives last, so a reader that asks
        for it never sees half a tree. Locally this is one rename."""
        if self._fs is None:
            destination = Path(self._full(target))
            destination.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._full(source), destination)
            _sync_directory(destination.parent)
            return
        names = [f.path[len(source) :].lstrip("/") for f in self.list(source)]
        with _transport(self.uri):
            for name in sorted(names, key=lambda n: (n == last, n)):
                self._fs.cp_file(self._full(f"{source}/{name}"), self._full(f"{target}/{name}"))
        self.delete(source)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a local file so that a crash leaves the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(data)
    _sync_and_rename(temporary, path)


def _sync_and_rename(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, target)
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _transport:
    """Turn client-library faults of a remote store into InfrastructureError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, FileNotFoundError | NotADirectoryError | InputError):
            return
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise InfrastructureError(
                f"storage failed: {type(error).__name__}: {error}", where=self.uri, next_step="run again; check the endpoint"
            ) from error
