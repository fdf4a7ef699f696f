"""Pictures and videos as `data:` URIs within a budget for the whole page, or as addresses of a server."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

_TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


class MediaBudget:
    """Embeds files until `limit_bytes` of them are in the page; counts what was left out."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self.embedded_bytes = 0
        self.left_out = 0

    def embed(self, path: Path) -> str | None:
        """The file as a `data:` URI; None when it does not fit any more."""
        size = path.stat().st_size
        if size > self._left:
            self.left_out += 1
            return None
        self._left -= size
        self.embedded_bytes += size
        return data_uri(path.read_bytes(), _TYPES[path.suffix.lower()])


class MediaLinks(MediaBudget):
    """In place of embedding, addresses below `address` of files below `root`: for pages that a server gives."""

    def __init__(self, root: Path, address: str) -> None:
        super().__init__(0)
        self._root, self._address = root, address

    def embed(self, path: Path) -> str:
        return f"{self._address}/{quote(path.relative_to(self._root).as_posix())}"


def data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
