"""A JSON array of objects read object by object: gigabytes of annotations in a few megabytes of memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO

from dataprep.sources.listing import Rejected
from dataprep.sources.tables import Record

CHUNK_BYTES = 1 << 20
MAX_OBJECT_CHARS = 16 << 20
_SPACE = re.compile(r"[\s,]*")
_BETWEEN = re.compile(r"\}\s*,\s*(?=\{)")


class _Window:
    """Decoded text from some byte on. Bytes that are not UTF-8 stay as lone surrogates, so that text and bytes can
    be counted against each other."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.ended = "", 0, False
        self._offset, self._counted = 0, 0

    def more(self) -> bool:
        """Read on; False when nothing was left. What is before `at` goes."""
        if self.ended:
            return False
        data = self._stream.read(CHUNK_BYTES)
        self.ended = not data
        self.offset()
        self.text = self.text[self.at :] + self._decoder.decode(data, final=self.ended)
        self.at = self._counted = 0
        return True

    def offset(self) -> int:
        """Byte at `at`."""
        passed = self.text[self._counted : self.at]
        self._offset += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self._counted = self.at
        return self._offset

    def skip_space(self) -> bool:
        """Move to the next character that is no space or comma; False at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return True
            if not self.more():
                return False


def read_json_array(stream: IO[bytes], path: str) -> Iterator[Record | Rejected]:
    """Records of a JSON array of objects, in file order, with the byte at which each begins.

    An object that cannot be parsed is rejected as `bad_row` and reading goes on at the next one; an array that
    breaks off, or something that is no array, is a `bad_table`.
    """
    window = _Window(stream)
    window.more()
    if window.text[:1] == "﻿":
        window.at = 1
    if not window.skip_space() or window.text[window.at] != "[":
        yield Rejected(path, None, "bad_table", "a JSON array of objects is needed")
        return
    window.at += 1
    row, complete = 0, False
    while window.skip_space():
        if window.text[window.at] == "]":
            complete = True
            break
        row += 1
        item = _next(window, path, row)
        yield item
        if isinstance(item, Rejected) and not _resume(window):
            break
    if not complete:
        yield Rejected(path, None, "bad_table", f"byte {window.offset()}: the array breaks off after {row} rows")


_DECODER = json.JSONDecoder()


def _next(window: _Window, path: str, row: int) -> Record | Rejected:
    """The object at the window's place; the place moves past it if it could be parsed."""
    offset = window.offset()
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.at)
        except (ValueError, RecursionError) as error:
            # An object cut by the window's end fails near it; more text may mend that.
            short = len(window.text) - window.at < MAX_OBJECT_CHARS
            near = not isinstance(error, json.JSONDecodeError) or _cut_short(error, window)
            if near and short and window.more():
                continue
            detail = str(error).partition(": line")[0] if isinstance(error, ValueError) else "nested too deeply"
            return Rejected(path, row, "bad_row", f"byte {offset}: {detail}")
        if end == len(window.text) and not isinstance(value, dict | list | str) and window.more():
            continue  # a number may go on
        raw = window.text[window.at : end]
        window.at = end
        if not isinstance(value, dict):
            return Rejected(path, row, "bad_row", f"byte {offset}: an object is needed, not {type(value).__name__}")
        if not raw.isascii() and any("\udc80" <= c <= "\udcff" for c in raw):
            value = json.loads(raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        return Record(row, offset, value)


def _cut_short(error: json.JSONDecodeError, window: _Window) -> bool:
    """May the end of the window, not the text, be at fault? An open string fails at its beginning."""
    return error.pos >= len(window.text) - 16 or error.msg.startswith("Unterminated string")


def _resume(window: _Window) -> bool:
    """After a bad row: move to what looks like the next object; False when there is none."""
    while True:
        if match := _BETWEEN.search(window.text, window.at):
            window.at = match.end()
            return True
        window.at = max(window.at, len(window.text) - 64)
        if not window.more():
            return False
