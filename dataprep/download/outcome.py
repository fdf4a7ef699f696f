"""What becomes of one wanted file: fetched, or failed for a reason, which says whether trying again can help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Media = Literal["video", "image"]
# Statuses after which another try may succeed; every other 4xx and 5xx is the server's last word.
RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})


@dataclass(frozen=True)
class WantedFile:
    """A file to fetch: where from, and its path in the collection. `claims` may hold `size_bytes`, `md5` and
    `sha256`, which are then checked."""

    path: str
    url: str
    media: Media
    claims: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Fetched:
    """A file in its place. `resumed`: bytes that an earlier attempt had left."""

    size_bytes: int
    sha256: str
    received: int
    resumed: int
    content_type: str


class FetchError(Exception):
    """One attempt failed. `reason` is a word for tables; `retry`: trying again may help, not before `after_s`;
    `host`: what is wrong is with the whole host."""

    def __init__(
        self, reason: str, detail: str = "", *, retry: bool = False, after_s: float | None = None, host: bool = False
    ) -> None:
        self.reason, self.detail = reason, detail
        self.retry, self.after_s, self.host = retry, after_s, host
        super().__init__(f"{reason}: {detail}" if detail else reason)
