"""Item store: results of expensive per-item work, keyed by source digest below a step's config digest.

When one video is added to ten million, the stage re-runs and every other item hits.
"""

from __future__ import annotations

from collections.abc import Callable

from m4v.core.canonical import digest_bytes
from m4v.core.errors import InputError
from m4v.core.storage import Storage, check_relative

LAST_USED = "last-used"  # beside the items of a step: touched when a stage opens them
_DIGEST_BYTES = 64
_SHORTEST_KEY = 3


class ItemStore:
    """Each item is one file: the sha256 of its payload in hex, then the payload. A damaged item is a miss."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @staticmethod
    def _path(key: str) -> str:
        if len(key) < _SHORTEST_KEY:
            raise ValueError(f"an item key is a digest or holds one, {key!r} is too short for that")
        return check_relative(f"{key[:2]}/{key}")

    def get(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            data = self._storage.read_bytes(path)
        except InputError:
            return None
        payload = data[_DIGEST_BYTES:]
        return payload if digest_bytes(payload).encode() == data[:_DIGEST_BYTES] else None

    def put(self, key: str, payload: bytes) -> None:
        self._storage.write_bytes(self._path(key), digest_bytes(payload).encode() + payload)

    def get_or_make(self, key: str, make: Callable[[], bytes]) -> bytes:
        payload = self.get(key)
        if payload is None:
            payload = make()
            self.put(key, payload)
        return payload
