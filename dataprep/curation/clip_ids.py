"""Ids of the clips that were accepted, with the file that each stands for."""

from __future__ import annotations

import tempfile

from dataprep.digest_table import DigestTable

_LENGTH_BYTES = 4


class ClipIds:
    """A clip id stands for one span only; paths lie in an unnamed temporary file, each once in a row."""

    def __init__(self) -> None:
        self._places = DigestTable()  # digest -> where its path stands
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._end = self._last_at = 0
        self._last: str | None = None

    def add(self, clip_id: str, path: str) -> str | None:
        """None for a new id; else the path of the file that it was added with."""
        at = self._last_at if path == self._last else self._end
        before = self._places.add(bytes.fromhex(clip_id), at)
        if before is not None:
            return self._read(before)
        if path != self._last:
            self._write(path)
        return None

    def _write(self, path: str) -> None:
        data = path.encode("utf-8", "surrogatepass")
        self._file.seek(self._end)
        self._file.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
        self._last, self._last_at = path, self._end
        self._end += _LENGTH_BYTES + len(data)

    def _read(self, at: int) -> str:
        self._file.seek(at)
        length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
        return self._file.read(length).decode("utf-8", "surrogatepass")
