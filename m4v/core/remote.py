"""Reads and writes of remote stores that survive a bad network: passing faults are tried again, every range comes
whole, and an object is committed only when the store has acknowledged the checksum of each of its parts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import mimetypes
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError
from m4v.core.local_files import MISSING, is_transport_fault, storage_faults
from m4v.core.ranges import RangeReader

T = TypeVar("T")
ATTEMPTS = 4
_BACKOFF_S = 0.2
_PART_BYTES = 16 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_PARALLEL_PARTS = 4
# A second try ends like the first.
_LASTING = (*MISSING, PermissionError, FileExistsError, InputError, DataIntegrityError)
_LASTING_NAMES = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError", "FileExpired"}
)
_log = logging.getLogger(__name__)


def retrying(what: str, call: Callable[[], T]) -> T:
    """Result of `call`, tried up to ATTEMPTS times while it fails by a fault that may pass; then the last fault.

    `call` must be safe to repeat. Waits 0.2 s, 0.4 s, 0.8 s, each up to twice as long by jitter.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            passing = is_transport_fault(error) or isinstance(error, InfrastructureError)
            lasting = isinstance(error, _LASTING) or type(error).__name__ in _LASTING_NAMES
            if attempt == ATTEMPTS or lasting or not passing:
                raise
            _log.info("%s failed (%s: %s), trying again", what, type(error).__name__, error)
        from m4v.core.rng import generator  # numpy takes longer to import than most commands to run

        jitter = float(generator(os.getpid(), what, attempt, "storage-backoff").uniform(1.0, 2.0))
        time.sleep(_BACKOFF_S * 2 ** (attempt - 1) * jitter)
    raise AssertionError("unreachable")


class StoredChecksumError(InfrastructureError):
    """The store sends other bytes than its checksum of them says, time and again: they are damaged there, or on
    every way from there."""


class _WrongBytes(InfrastructureError):
    """The store holds other bytes than were sent to it."""


def open_remote(fs: Any, path: str) -> BinaryIO:
    """A seekable reader of an object: each range is fetched whole, again when it comes short, and always of the
    object as it was when opened. Raises FileNotFoundError and kin."""
    stream = retrying(path, lambda: fs.open(path, "rb", cache_type="none"))
    # On S3 a prefix opens as an empty file; other file systems refuse it themselves.
    details = getattr(stream, "details", None) or {}
    if details.get("type") == "directory":
        stream.close()
        raise IsADirectoryError(path)
    size = getattr(stream, "size", None)
    if size is None:
        return cast(BinaryIO, stream)  # a server that tells no size gives no ranges

    def fetch(start: int, end: int) -> bytes:
        def once() -> bytes:
            stream.seek(start)
            data = bytes(stream.read(end - start))
            if len(data) != end - start:
                raise InfrastructureError("store sent a short answer", value=f"{len(data)} of {end - start} bytes")
            return data

        with storage_faults(path):
            try:
                return retrying(path, once)
            except Exception as error:
                if type(error).__name__ != "FlexibleChecksumError":
                    raise
                raise StoredChecksumError(
                    "what the store sends differs from its own checksum", value=path, next_step="run again"
                ) from error

    return io.BufferedReader(RangeReader(fetch, int(size), close=stream.close), 1 << 16)


def write_remote(fs: Any, path: str, source: bytes | Path) -> None:
    """Write an object, whole or not at all for its readers. Raises InfrastructureError when the store's checksum of
    what arrived stays another than ours; what a store without checks of its own has then kept is removed."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if "s3" not in _protocols(fs):
        retrying(path, lambda: _write_any(fs, path, source, size))
    elif size <= _PART_BYTES:
        data = source if isinstance(source, bytes) else source.read_bytes()
        try:
            retrying(path, lambda: _put(fs, path, data))
        except _WrongBytes:
            with contextlib.suppress(Exception):
                fs.rm_file(path)
            raise
    else:
        retrying(path, lambda: _put_parts(fs, path, source, size))
    fs.invalidate_cache(path)


class RemoteFiles:
    """An fsspec file system whose calls are tried again; paths are the file system's own. Raises what it raises."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        if hasattr(fs, "retries"):
            fs.retries = 2  # s3fs's own tries would multiply with ours

    def is_like(self, other: RemoteFiles) -> bool:
        """Can files be copied between the two without passing through here?"""
        return type(self._fs) is type(other._fs)

    def exists(self, path: str) -> bool:
        return retrying(path, lambda: bool(self._fs.exists(path)))

    def modified_at(self, path: str) -> float:
        return retrying(path, lambda: float(self._fs.modified(path).timestamp()))

    def open(self, path: str) -> BinaryIO:
        return open_remote(self._fs, path)

    def write(self, path: str, source: bytes | Path) -> None:
        write_remote(self._fs, path, source)

    def copy(self, source: str, target: str) -> None:
        retrying(target, lambda: self._fs.cp_file(source, target))

    def find(self, path: str) -> dict[str, Any]:
        return retrying(path, lambda: dict(self._fs.find(path, detail=True)))

    def ls(self, path: str) -> list[dict[str, Any]]:
        return retrying(path, lambda: list(self._fs.ls(path, detail=True)))

    def remove(self, path: str) -> None:
        """Remove a file or everything below a prefix; nothing there is not an error."""

        def once() -> None:
            if self._fs.exists(path):
                with contextlib.suppress(*MISSING):  # another try has been there before its answer was lost
                    self._fs.rm(path, recursive=True)

        retrying(path, once)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _write_any(fs: Any, path: str, source: bytes | Path, size: int) -> None:
    fs.pipe_file(path, source) if isinstance(source, bytes) else fs.put_file(str(source), path)
    if int(fs.info(path)["size"]) != size:
        raise InfrastructureError("store holds another size than was written", value=path)


def _put(fs: Any, path: str, data: bytes) -> None:
    bucket, key, _ = fs.split_path(path)
    _check_etag(fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, ContentType=_type(key)), data, path)


def _put_parts(fs: Any, path: str, source: bytes | Path, size: int) -> None:
    """Multipart upload: completed only after every part's checksum is acknowledged, else given up as a whole."""
    bucket, key, _ = fs.split_path(path)
    step = max(_PART_BYTES, -(-size // _MOST_PARTS))
    place = {"Bucket": bucket, "Key": key}
    place["UploadId"] = fs.call_s3("create_multipart_upload", ContentType=_type(key), **place)["UploadId"]

    def part(number: int) -> dict[str, object]:
        data = _piece(source, (number - 1) * step, step)

        def once() -> dict[str, object]:
            answer = fs.call_s3("upload_part", PartNumber=number, Body=data, **place)
            _check_etag(answer, data, path)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        return retrying(f"{path} part {number}", once)

    try:
        with ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="upload") as pool:
            parts = list(pool.map(part, range(1, -(-size // step) + 1)))
        _complete(fs, path, place, parts, size)
    except BaseException:
        with contextlib.suppress(Exception):  # the store's lifecycle rule removes what cannot be removed now
            fs.call_s3("abort_multipart_upload", **place)
        raise


def _complete(fs: Any, path: str, place: dict[str, str], parts: list[dict[str, object]], size: int) -> None:
    """Commit; an answer that was lost on its way back is no failure when the object is there."""
    digests = b"".join(bytes.fromhex(str(p["ETag"]).strip('"')) for p in parts) if _all_md5(parts) else b""
    expected = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}" if digests else None
    try:
        fs.call_s3("complete_multipart_upload", MultipartUpload={"Parts": parts}, **place)
    except Exception as error:
        found = _head(fs, place)
        if found is None or found.get("ContentLength") != size or _etag(found) != expected:
            # Not raised as it is: "no such upload" would look like a missing file.
            raise InfrastructureError(f"upload could not be completed: {error}", value=path) from error


def _head(fs: Any, place: dict[str, str]) -> dict[str, Any] | None:
    try:
        return dict(fs.call_s3("head_object", Bucket=place["Bucket"], Key=place["Key"]))
    except MISSING:
        return None


def _piece(source: bytes | Path, start: int, length: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + length]
    with source.open("rb") as stream:
        stream.seek(start)
        return stream.read(length)


def _type(key: str) -> str:
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def _etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"').lower()


def _is_md5(etag: str) -> bool:
    return len(etag) == 32 and all(c in "0123456789abcdef" for c in etag)


def _all_md5(parts: list[dict[str, object]]) -> bool:
    return all(_is_md5(_etag(p)) for p in parts)


def _check_etag(answer: dict[str, Any], data: bytes, path: str) -> None:
    """Hold the store's ETag against the bytes sent; encrypted objects (SSE-KMS, SSE-C) have one that says nothing."""
    encrypted = "aws:kms" in str(answer.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in answer
    etag = _etag(answer)
    if _is_md5(etag) and not encrypted and etag != hashlib.md5(data, usedforsecurity=False).hexdigest():
        raise _WrongBytes("store has received other bytes than were sent", value=path)
