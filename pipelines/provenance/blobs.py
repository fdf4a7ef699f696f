"""Small files that ledger rows cite by digest (a diff, the facts of a report, a verdict), below `provenance/` in the
store."""

from __future__ import annotations

import time

from m4v.core.canonical import digest_bytes
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage

PROVENANCE = "provenance"
FRESH_S = 3600.0


class BlobRef(FrozenModel):
    sha256: str
    size_bytes: int


class BlobStore:
    """Content-addressed: the same bytes lie in one place, and a reader checks them."""

    def __init__(self, store_uri: str) -> None:
        self._storage = Storage(store_uri)

    def put(self, data: bytes) -> BlobRef:
        """Keep `data`; raises InfrastructureError when the store cannot be written."""
        reference = BlobRef(sha256=digest_bytes(data), size_bytes=len(data))
        place = _place(reference.sha256)
        if not self._storage.exists(place) or time.time() - self._storage.modified_at(place) > FRESH_S:
            self._storage.write_bytes(place, data)  # a file that nobody cited goes by its age: this begins anew
        return reference

    def get(self, sha256: str) -> bytes:
        """Raises InputError when there is no such blob, DataIntegrityError when its bytes are others."""
        place = _place(sha256)
        if not self._storage.exists(place):
            raise InputError("the store has no such provenance file", value=sha256, where=self._storage.uri)
        data = self._storage.read_bytes(place)
        if digest_bytes(data) != sha256:
            raise DataIntegrityError("provenance file was changed", value=sha256, where=self._storage.uri)
        return data


def _place(sha256: str) -> str:
    return f"{PROVENANCE}/{sha256[:2]}/{sha256}"
