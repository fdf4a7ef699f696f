"""The poison list: files, by the digest of their bytes, whose work had to be killed, so that it is not tried for ever.

A file is on it once its work has ended so often enough under limits at least as wide as today's.
"""

from __future__ import annotations

import json
from typing import Any

from dataprep.engines.limits import WorkLimits
from dataprep.quarantine import ItemFailure, Reason
from m4v.core.items import ItemStore
from m4v.core.storage import Storage

_KILLS = frozenset({str(Reason.TIMEOUT), str(Reason.OUT_OF_MEMORY), str(Reason.WORKER_DIED)})


class PoisonList:
    """Kept in an item store, one entry a file."""

    def __init__(self, store_uri: str, limits: WorkLimits, after: int) -> None:
        self._store, self._limits, self._after = ItemStore(Storage(store_uri)), limits, after

    def verdict(self, digest: str) -> ItemFailure | None:
        """Why the file is not to be tried; None when it may be."""
        entry = self._entry(digest)
        if entry is None or entry["kills"] < self._after or self._limits.wider_than(entry["limits"]):
            return None
        detail = f"{entry['detail']}; killed in {entry['kills']} runs, not tried again under these limits"
        return ItemFailure(entry["reason"], detail)

    def add(self, digest: str, failure: ItemFailure) -> bool:
        """Count a kill; False for any other failure, which is not counted."""
        if failure.reason not in _KILLS:
            return False
        entry = self._entry(digest)
        fresh = entry is None or self._limits.wider_than(entry["limits"])
        kills = 1 if entry is None or fresh else entry["kills"] + 1
        made = {
            "kills": kills, "reason": str(failure.reason), "detail": failure.detail, "limits": self._limits.as_list(),
        }  # fmt: skip
        self._store.put(digest, json.dumps(made, sort_keys=True).encode())
        return True

    def _entry(self, digest: str) -> dict[str, Any] | None:
        payload = self._store.get(digest)
        return None if payload is None else dict(json.loads(payload))
