"""One attempt at one file: ask for what is missing of it, check what comes, put it in its place."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dataprep.download.client import Answer, Client, status_error
from dataprep.download.config import DownloadConfig
from dataprep.download.disk import Disk
from dataprep.download.magic import HEAD_BYTES, media_problem
from dataprep.download.outcome import Fetched, FetchError, WantedFile
from dataprep.download.partial import Partial, validator_of
from m4v.core.storage import Storage, check_relative, storage_faults, sync_directory

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_OPT_OUT = re.compile(r"\b(noai|noimageai)\b", re.IGNORECASE)
_STALL_S = 30.0
_BAD_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EILSEQ)


class Stopped(Exception):
    """The download was asked to stop; what was fetched so far is kept."""


class _Range(NamedTuple):
    """Of an answer: the byte it begins with, and the size of the whole file where that is told."""

    start: int
    total: int | None


class Fetcher:
    """Fetches into `location` by way of partial files below `parts`. `spend(bytes)` waits for bandwidth; `stopped()`
    is asked between pieces of a body."""

    def __init__(
        self,
        client: Client,
        config: DownloadConfig,
        location: Storage,
        parts: Path,
        spend: Callable[[int], None] = lambda size: None,
        stopped: Callable[[], bool] = lambda: False,
        disk: Disk | None = None,
    ) -> None:
        self._disk = disk or Disk(config, parts, stays=location.is_local)
        self._client, self._config, self._location, self._parts = client, config, location, parts
        self._spend, self._stopped = spend, stopped

    def fetch(self, wanted: WantedFile) -> Fetched:
        """Raises FetchError; Stopped; InfrastructureError when disk or store fail, ConfigError when the download may
        hold no more on disk. A retry of the same file goes on where this one ended."""
        partial = Partial(self._parts, wanted.path, wanted.url)
        placed = False
        try:
            fetched = self._fetch(wanted, partial)
            placed = True
        finally:
            self._disk.end(partial.file, placed=placed)
        return fetched

    def _fetch(self, wanted: WantedFile, partial: Partial) -> Fetched:
        try:
            resumed, content_type = self._receive(wanted, partial)
            size, sha256 = self._check_whole(wanted, partial)
        except FetchError as error:
            if not error.retry or error.reason in _DISCARDED:
                partial.discard()
            raise
        except OSError as error:
            raise _storage_error(error, str(self._parts)) from error
        self._place(wanted.path, partial)
        return Fetched(size, sha256, size - resumed, resumed, content_type)

    def _receive(self, wanted: WantedFile, partial: Partial) -> tuple[int, str]:
        """Bring the partial file to its full length; returns the bytes that were there before, and the type."""
        have = partial.resumable()
        headers = {"Range": f"bytes={have[0]}-", "If-Range": have[1]} if have else {}
        with self._client.get(wanted.url, headers) as answer:
            if answer.status == 416 and have is not None:
                if range_of(answer).total == have[0] and answer.headers.get("etag") == have[1]:
                    return have[0], ""  # it was whole, only not in its place yet
                raise FetchError("range_refused", f"from byte {have[0]}", retry=True)
            if answer.status not in (200, 206):
                raise status_error(answer)
            place = self._check_head(answer, have)
            content_type = answer.headers.get("content-type", "")
            self._disk.begin(partial.file, place.start, place.total)
            if place.start:
                with partial.append() as out:
                    self._copy(answer, out, place, wanted, partial)
            else:
                with partial.begin(validator_of(answer.headers)) as out:
                    self._copy(answer, out, place, wanted, partial)
            return place.start, content_type

    def _check_head(self, answer: Answer, have: tuple[int, str] | None) -> _Range:
        """Where the body belongs, after the checks that need no byte of it."""
        place = range_of(answer)
        if answer.status == 206:
            etag = answer.headers.get("etag")
            if have is None or place.start != have[0]:
                raise FetchError("range_refused", "another range than was asked for", retry=True)
            if have[1].startswith('"') and etag not in (None, have[1]):
                raise FetchError("range_refused", "of another body than the part that is here", retry=True)
        if self._config.honour_opt_out and _OPT_OUT.search(answer.headers.get("x-robots-tag", "")):
            raise FetchError("opted_out", answer.headers["x-robots-tag"])
        if place.total is not None and place.total > self._config.max_bytes:
            raise FetchError("too_large", f"{place.total} bytes")
        if answer.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise FetchError("not_media", f"encoded as {answer.headers['content-encoding']}")
        return place

    def _copy(self, answer: Answer, out: BinaryIO, place: _Range, wanted: WantedFile, partial: Partial) -> None:
        size, head, checked = place.start, b"", place.start >= HEAD_BYTES
        pace = _Pace(self._config)
        for chunk in answer.body:
            if self._stopped():
                raise Stopped
            self._spend(len(chunk))
            size += len(chunk)
            if size > self._config.max_bytes:
                raise FetchError("too_large", f"more than {self._config.max_bytes} bytes")
            self._disk.wrote(partial.file, len(chunk))
            out.write(chunk)
            out.flush()  # what is out of this process survives its being killed
            pace.add(len(chunk))
            if not checked:
                head += chunk
                if checked := len(head) >= HEAD_BYTES and place.start == 0:
                    _check_magic(head[:HEAD_BYTES], wanted)
        if place.total is not None and size != place.total:
            raise FetchError("truncated", f"{size} of {place.total} bytes", retry=True)

    def _check_whole(self, wanted: WantedFile, partial: Partial) -> tuple[int, str]:
        """Size and sha256 of the received file, held against magic bytes and the table's claims."""
        size = partial.file.stat().st_size
        if size == 0:
            raise FetchError("empty", "the server sent no bytes")
        with partial.file.open("rb") as stream:
            _check_magic(stream.read(HEAD_BYTES), wanted)
        claimed = wanted.claims.get("size_bytes")
        if isinstance(claimed, int) and not isinstance(claimed, bool) and claimed != size:
            raise FetchError("wrong_size", f"{size} bytes, the table says {claimed}", retry=True)
        digests = partial.digests()
        for name, digest in digests.items():
            told = wanted.claims.get(name)
            if isinstance(told, str) and len(told) == len(digest) and told.lower() != digest:
                raise FetchError("wrong_digest", f"{name} is {digest}, the table says {told.lower()}", retry=True)
        return size, digests["sha256"]

    def _place(self, path: str, partial: Partial) -> None:
        if not self._location.is_local:
            self._location.put_file(partial.file, path)
            partial.discard()
            return
        target = self._location.local_root / check_relative(path)
        try:
            partial.move_to(target)
            sync_directory(target.parent)
        except OSError as error:
            raise _storage_error(error, str(target)) from error


# After these, what is here is not worth going on with.
_DISCARDED = frozenset({"range_refused", "wrong_size", "wrong_digest", "truncated"})


def _storage_error(error: OSError, where: str) -> Exception:
    """A name that the file system refuses is this file's fault; a full disk is everybody's."""
    if error.errno in _BAD_NAME:
        return FetchError("unsafe_name", os.strerror(error.errno))
    try:
        with storage_faults(where):
            raise error
    except Exception as found:
        return found


def _check_magic(head: bytes, wanted: WantedFile) -> None:
    if problem := media_problem(head, wanted.media):
        raise FetchError("not_media", problem)


def range_of(answer: Answer) -> _Range:
    """Where the body of an answer with status 200, 206 or 416 belongs."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if answer.status != 200 and match is not None:
        return _Range(int(match[1] or 0), None if match[3] == "*" else int(match[3]))
    length = answer.headers.get("content-length", "")
    return _Range(0, int(length) if answer.status == 200 and length.isdigit() else None)


class _Pace:
    """Raises FetchError `timeout` when an attempt takes too long or its body drips."""

    def __init__(self, config: DownloadConfig) -> None:
        self._config = config
        self._begun = self._window = time.monotonic()
        self._bytes = 0

    def add(self, size: int) -> None:
        now = time.monotonic()
        self._bytes += size
        if now - self._begun > self._config.item_timeout_s:
            raise FetchError("timeout", f"not done in {self._config.item_timeout_s:g} s", retry=True)
        if now - self._window > _STALL_S:
            if self._bytes / (now - self._window) < self._config.min_bytes_per_s:
                raise FetchError("timeout", f"slower than {self._config.min_bytes_per_s:g} bytes/s", retry=True)
            self._window, self._bytes = now, 0
