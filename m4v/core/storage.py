"""One interface over a local directory or an `s3://` prefix (through fsspec/s3fs).

Every write is atomic for a reader: local files are written beside their place, synced and renamed; an S3
object appears only when its upload completes. Faults of a network that may pass are tried again
(`m4v.core.remote`). Credentials and endpoints come from the environment (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, …), never from a recipe.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import fsspec

from m4v.core.canonical import digest_file
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.local_files import (
    MISSING,
    is_temporary,
    replacing,
    storage_faults,
    sync_directory,
    sync_tree,
    temporary_beside,
    try_link,
    write_atomic,
)
from m4v.core.remote import RemoteFiles


class StoredFile(NamedTuple):
    """A file below a storage root: relative path and size in bytes."""

    path: str
    size_bytes: int


def check_relative(path: str) -> str:
    """`path` if it is a plain `a/b/c` below a root; raises InputError otherwise."""
    if not path or "\\" in path or "\x00" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise InputError("path is not a plain relative path", value=path, next_step="use a/b/c below the root")
    return path


class Storage:
    """Files below one root URI. Missing files raise InputError; disk and transport faults raise
    InfrastructureError. May be carried into forked children."""

    def __init__(self, uri: str) -> None:
        uri = uri.removeprefix("file://")
        self.is_local = "://" not in uri
        self.uri = str(Path(uri).expanduser().absolute()) if self.is_local else uri.rstrip("/")
        self._root, self._pid = self.uri, -1
        self._remote: RemoteFiles | None = None
        if not self.is_local:
            self._connect()

    def _connect(self) -> None:
        try:
            # Listing caches would hide what another process has just published.
            fs, self._root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"storage of this kind cannot be used: {error}",
                value=self.uri,
                next_step="use a local path or s3://bucket/prefix (pip install 'm4v-pipeline[s3]')",
            ) from None
        self._remote, self._pid = RemoteFiles(fs), os.getpid()

    @property
    def _fs(self) -> RemoteFiles | None:
        """The remote store, None for a local root."""
        if not self.is_local and self._pid != os.getpid():
            self._connect()  # forked: the parent's client and event loop are of no use here
        return self._remote

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> Storage:
        return Storage(f"{self.uri}/{check_relative(path)}")

    @property
    def local_root(self) -> Path:
        """Directory of a local storage; raises InputError for a remote one."""
        if not self.is_local:
            raise InputError("a local directory is needed", value=self.uri, next_step="copy it with `fetch` first")
        return Path(self._root)

    def _full(self, path: str) -> str:
        return f"{self._root}/{check_relative(path)}" if path else self._root

    def exists(self, path: str = "") -> bool:
        with storage_faults(self.uri):
            return Path(self._full(path)).exists() if self._fs is None else self._fs.exists(self._full(path))

    def modified_at(self, path: str) -> float:
        """Unix time of the last change of a file (or of a local directory)."""
        try:
            with storage_faults(self.uri, reading=True):
                if self._fs is None:
                    return Path(self._full(path)).stat().st_mtime
                return self._fs.modified_at(self._full(path))
        except MISSING:
            raise InputError("file does not exist", value=path, where=self.uri) from None

    def open(self, path: str) -> BinaryIO:
        """Open for reading, seekable."""
        try:
            with storage_faults(self.uri, reading=True):
                if self._fs is None:
                    return cast(BinaryIO, Path(self._full(path)).open("rb"))
                return self._fs.open(self._full(path))
        except MISSING:
            raise InputError("file does not exist", value=path, where=self.uri) from None

    def read_bytes(self, path: str) -> bytes:
        """Raises InputError when there is no such file."""
        with self.open(path) as stream, storage_faults(self.uri):
            return stream.read()

    def chunks(self, path: str, size_bytes: int = 1 << 20) -> Iterator[bytes]:
        """The file's bytes in pieces."""
        with self.open(path) as stream:
            while True:
                with storage_faults(self.uri):
                    chunk = stream.read(size_bytes)
                if not chunk:
                    return
                yield chunk

    def digest(self, path: str) -> str:
        """sha256 of a file's bytes, hex."""
        sha = hashlib.sha256()
        for chunk in self.chunks(path):
            sha.update(chunk)
        return sha.hexdigest()

    def write_bytes(self, path: str, data: bytes) -> None:
        with storage_faults(self.uri):
            if self._fs is None:
                write_atomic(Path(self._full(path)), data)
            else:
                self._fs.write(self._full(path), data)

    def put_file(self, source: Path, path: str) -> None:
        """Copy a local file in; raises InputError when there is none."""
        if not source.is_file():
            raise InputError("file does not exist", value=str(source))
        with storage_faults(self.uri):
            if self._fs is None:
                target = Path(self._full(path))
                with replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
            else:
                self._fs.write(self._full(path), source)

    def fetch(self, path: str, target: Path, sha256: str | None = None) -> Path:
        """Copy a file out to `target`, keeping one that is there and whose digest agrees.

        Raises DataIntegrityError (and leaves nothing) when the copy's digest is not `sha256`.
        """
        if target.exists() and sha256 is not None and digest_file(target) == sha256:
            return target
        with storage_faults(str(target)), replacing(target) as temporary:
            # What a network has garbled comes right when it is read again.
            for _ in range(1 if self.is_local or sha256 is None else 2):
                sha = hashlib.sha256()
                with temporary.open("wb") as out:
                    for chunk in self.chunks(path):
                        sha.update(chunk)
                        out.write(chunk)
                if sha256 in (None, sha.hexdigest()):
                    break
            else:
                raise DataIntegrityError("bytes differ from their digest", value=path, where=self.uri)
        return target

    def share(self, source: Storage, source_path: str, path: str, sha256: str) -> None:
        """Give `path` the bytes of a file of another storage without moving them: a hard link on one local file
        system, a copy by the server on one remote; anywhere else a copy. What was at `path` is replaced.

        Raises InputError when there is no such file, DataIntegrityError (and leaves `path` alone) when local bytes
        are not of `sha256`; a copy that the server makes is not read here.
        """
        if self._fs is not None and source._fs is not None and self._fs.is_like(source._fs):
            if not source.exists(source_path):
                raise InputError("file does not exist", value=source_path, where=source.uri)
            with storage_faults(self.uri):
                self._fs.copy(source._full(source_path), self._full(path))
            return
        if self._fs is not None:
            with tempfile.TemporaryDirectory() as scratch:
                self.put_file(source.fetch(source_path, Path(scratch) / "file", sha256), path)
            return
        target = Path(self._full(path))
        if not source.is_local or not try_link(Path(source._full(source_path)), target, sha256):
            target.unlink(missing_ok=True)
            source.fetch(source_path, target, sha256)

    def list(self, path: str = "") -> Iterator[StoredFile]:
        """All files below `path`, sorted by path; temporaries of unfinished writes are left out."""
        if self._fs is None:
            base = Path(self._full(path))
            with storage_faults(self.uri):
                files = sorted(p.relative_to(self._root).as_posix() for p in base.rglob("*") if p.is_file())
            for name in files:
                if not is_temporary(name.rsplit("/", 1)[-1]):
                    yield StoredFile(name, (Path(self._root) / name).stat().st_size)
            return
        with storage_faults(self.uri):
            found = self._fs.find(self._full(path))
        for name in sorted(found):
            yield StoredFile(name[len(self._root) :].lstrip("/"), int(found[name]["size"]))

    def directories(self, path: str = "") -> builtins.list[str]:  # `list` is a method here
        """Names of the direct sub-directories of `path`, sorted."""
        try:
            with storage_faults(self.uri, reading=True):
                if self._fs is None:
                    return sorted(p.name for p in Path(self._full(path)).iterdir() if p.is_dir())
                rows = self._fs.ls(self._full(path))
        except MISSING:
            return []
        return sorted(r["name"].rstrip("/").rsplit("/", 1)[-1] for r in rows if r["type"] == "directory")

    def files(self, path: str = "", limit: int | None = None) -> builtins.list[StoredFile]:
        """The files directly in `path`, sorted by path, the first `limit` of them; nothing below its sub-directories
        is looked at."""
        try:
            with storage_faults(self.uri, reading=True):
                if self._fs is None:
                    with os.scandir(self._full(path)) as entries:
                        found = {e.name: e for e in entries if not is_temporary(e.name) and e.is_file()}
                    names = [(f"{path}/{n}" if path else n, found[n]) for n in sorted(found)[:limit]]
                    return [StoredFile(name, entry.stat().st_size) for name, entry in names]
                rows = self._fs.ls(self._full(path))
        except MISSING:
            return []
        sizes = {r["name"][len(self._root) :].lstrip("/"): int(r["size"] or 0) for r in rows if r["type"] == "file"}
        return [StoredFile(name, sizes[name]) for name in sorted(sizes) if name][:limit]

    def delete(self, path: str = "") -> None:
        """Delete a file or a whole tree; nothing there is not an error."""
        with storage_faults(self.uri):
            if self._fs is None:
                target = Path(self._full(path))
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            else:
                self._fs.remove(self._full(path))


__all__ = [
    "Storage",
    "StoredFile",
    "check_relative",
    "is_temporary",
    "replacing",
    "storage_faults",
    "sync_directory",
    "sync_tree",
    "temporary_beside",
    "write_atomic",
]
