"""Reading parts of a file behind an HTTP URL: an archive's directory and single members, not the whole archive."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import BinaryIO

from dataprep.download.client import Answer, Client, status_error
from dataprep.download.config import DownloadConfig
from dataprep.download.fetch import range_of
from dataprep.download.outcome import FetchError
from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError
from m4v.core.ranges import RangeReader
from m4v.core.rng import generator

_Once = Callable[[Answer, int, int], bytes]


def open_url(url: str, config: DownloadConfig | None = None, *, seed: int = 0) -> BinaryIO:
    """A seekable reader of a URL. Every range is tried again like a download's files, is as long as was asked for, and
    is of the body that was there when it was opened; latest ranges are kept in memory.

    Raises InputError for a URL that must not be or cannot be read in ranges, while reading InfrastructureError when
    the server stays away and DataIntegrityError when the file has changed.
    """
    ranges = _UrlRanges(url, config or DownloadConfig(), seed)
    return io.BufferedReader(RangeReader(ranges.fetch, ranges.size, close=ranges.close), 1 << 16)


class _UrlRanges:
    def __init__(self, url: str, config: DownloadConfig, seed: int) -> None:
        self._url, self._config, self._seed = url, config, seed
        self._client = Client(config)
        self._etag: str | None = None
        self.size = 0
        try:
            self._try(0, 1, self._begin)
        except BaseException:
            self._client.close()
            raise

    def close(self) -> None:
        self._client.close()

    def fetch(self, start: int, end: int) -> bytes:
        return self._try(start, end, self._read)

    def _try(self, start: int, end: int, once: _Once) -> bytes:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        for attempt in range(1, self._config.attempts + 1):
            try:
                with self._client.get(self._url, headers) as answer:
                    return once(answer, start, end)
            except FetchError as error:
                if not error.retry:
                    raise InputError(f"URL cannot be read: {error}", value=self._url) from None
                if attempt == self._config.attempts:
                    raise InfrastructureError(
                        f"URL could not be read: {error}", value=self._url, next_step="check the network and run again"
                    ) from None
                self._wait(error, start, attempt)
        raise AssertionError("unreachable")

    def _wait(self, error: FetchError, start: int, attempt: int) -> None:
        jitter = float(generator(self._seed, self._url, start, attempt, "range-backoff").uniform(0.5, 1.0))
        backoff = min(self._config.backoff_max_s, self._config.backoff_s * 2.0 ** (attempt - 1)) * jitter
        time.sleep(min(max(error.after_s or 0.0, backoff), self._config.retry_after_max_s))

    def _begin(self, answer: Answer, start: int, end: int) -> bytes:
        if answer.status not in (200, 206):
            raise status_error(answer)
        total = range_of(answer).total
        if answer.status == 200 or total is None:
            raise FetchError("no_ranges", "the server gives whole files only")
        self.size, self._etag = total, answer.headers.get("etag")
        return b""

    def _read(self, answer: Answer, start: int, end: int) -> bytes:
        if answer.status != 206:
            raise status_error(answer) if answer.status != 200 else FetchError("range_refused", retry=True)
        place = range_of(answer)
        if place.total != self.size or answer.headers.get("etag") != self._etag:
            raise DataIntegrityError("file has changed while it was read", value=self._url)
        data = bytearray()
        for chunk in answer.body:
            data += chunk
            if len(data) > end - start:
                break
        if place.start != start or len(data) != end - start:
            raise FetchError("truncated", f"{len(data)} of {end - start} bytes", retry=True)
        return bytes(data)
