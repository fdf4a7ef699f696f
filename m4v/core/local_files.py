"""Local files that a crash leaves whole: written beside their place, synced and renamed; and what faults of disks
and stores are told as."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError, M4VError

MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Client libraries of remote stores.
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs")
# Another file system, one without links, a file of somebody else, or as many links as there can be.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def is_temporary(name: str) -> bool:
    """Is this the name of an unfinished write (`.NAME.UNIQUE.tmp`)? Readers pass over such files."""
    return name.startswith(".") and name.endswith(".tmp")


def temporary_beside(path: Path) -> Path:
    """A fresh name in the same directory that `is_temporary`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a local file so that a crash leaves the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync_tree(directory: Path) -> None:
    """Flush every file and directory of a local tree to disk."""
    for path in [directory, *directory.rglob("*")]:
        _sync(path)


def sync_directory(directory: Path) -> None:
    """Flush a directory's names to disk: makes a rename in it last."""
    _sync(directory)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary beside `target` that replaces it, synced, if the block succeeds and else goes. What is written to
    it must be closed when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def try_link(source: Path, target: Path, sha256: str) -> bool:
    """Hard link with checked bytes in place of `target`; False where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        temporary.hardlink_to(source)
    except FileNotFoundError:
        raise InputError("file does not exist", value=str(source)) from None
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    try:
        if digest_file(temporary) != sha256:
            raise DataIntegrityError("bytes differ from their digest", value=source.name, where=str(source.parent))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # renaming one link of a file onto another leaves both
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_transport_fault(error: BaseException) -> bool:
    """Is it a fault of a disk, a network or a client library, not of the program?"""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _LIBRARIES


@contextmanager
def storage_faults(uri: str, *, reading: bool = False) -> Iterator[None]:
    """Turn faults of a disk or of a client library into InfrastructureError.

    While `reading`, a missing file is no fault: its FileNotFoundError (and kin) comes through.
    """
    try:
        yield
    except M4VError:
        raise
    except Exception as error:
        if reading and isinstance(error, MISSING):
            raise
        if not is_transport_fault(error):
            raise
        raise InfrastructureError(
            f"storage failed: {type(error).__name__}: {error}",
            where=uri,
            next_step="check disk space, permissions and the endpoint, then run again",
        ) from error
