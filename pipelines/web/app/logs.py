"""Parts of an attempt's log: its end, or any piece by byte offset; never the whole file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from m4v.core.storage import storage_faults
from pipelines.ledger import AttemptRow
from pipelines.workspace import Workspace

PIECE_BYTES = 64 * 1024
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class LogPiece:
    """Bytes `start` to `end` of a log of `size` bytes, as text in whole lines. `missing` says why there is none."""

    text: str = ""
    start: int = 0
    end: int = 0
    size: int = 0
    missing: str = ""

    @property
    def has_older(self) -> bool:
        return self.start > 0

    @property
    def has_newer(self) -> bool:
        return self.end < self.size


def log_piece(
    workspace: Workspace, attempt: AttemptRow, *, before: int | None = None, after: int | None = None,
    limit: int = PIECE_BYTES,
) -> LogPiece:  # fmt: skip
    """The piece that ends at offset `before`, or begins at `after`; else the last one."""
    path = workspace.attempt_file(attempt.log_path, attempt.stage_key, attempt.attempt_id)
    home = workspace.home.resolve()
    if not path.resolve().is_relative_to(home):  # a row from another workspace, or one that somebody made up
        return LogPiece(missing=f"the log lies on {attempt.host}, outside this workspace: {attempt.log_path}")
    if not path.is_file():
        return LogPiece(missing=f"the log is not on this machine; it was written on {attempt.host}")
    with storage_faults(str(path)), path.open("rb") as stream:
        size = stream.seek(0, 2)
        if after is not None:
            start = min(max(after, 0), size)
            stream.seek(start)
            data = stream.read(limit)
            return _whole_lines_from(data, start, size)
        end = size if before is None else min(max(before, 0), size)
        start = max(0, end - limit)
        stream.seek(start)
        return _whole_lines_to(stream.read(end - start), start, end, size)


def _whole_lines_from(data: bytes, start: int, size: int) -> LogPiece:
    cut = data.rfind(b"\n") + 1 or len(data)
    return LogPiece(_text(data[:cut]), start, start + cut, size)


def _whole_lines_to(data: bytes, start: int, end: int, size: int) -> LogPiece:
    skip = data.find(b"\n") + 1 if start > 0 else 0  # a line that began before this piece belongs to the one before
    return LogPiece(_text(data[skip:]), start + skip, end, size)


def _text(data: bytes) -> str:
    return _ESCAPES.sub("", data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n"))
