"""The block list of all takedowns in force, as the `curate` stage gets it; its digest stands in the stage key."""

from __future__ import annotations

from typing import Any

from m4v.core.canonical import canonical_json, digest_bytes
from m4v.core.errors import InfrastructureError
from pipelines.keys.changes import TAKEDOWNS
from pipelines.ledger import Ledger

ATTACHMENT = "blocked"  # its name among a request's attachments
OPENED = "opened"
Parts = tuple[tuple[str, int], ...]


class BlockLists:
    """Reads block lists; the rows they are made of never change, so one that was read stays good."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._digests: dict[Parts, str] = {}
        self._contents: dict[str, bytes] = {}

    def probe(self) -> str | None:
        """What stands in a key for the list of this moment; None while nothing is blocked."""
        parts = tuple(self._ledger.blocked_parts())
        if not parts:
            return None
        if parts not in self._digests:
            content = canonical_json({"cases": [self._case(case, number) for case, number in parts]})
            self._digests[parts] = f"{TAKEDOWNS}{digest_bytes(content)}"
            self._contents[self._digests[parts]] = content
        return self._digests[parts]

    def content(self, probe: str | None) -> bytes | None:
        """The list behind a key's value; raises InfrastructureError for one that this process never made a key of."""
        if probe is None:
            return None
        if probe not in self._contents:
            raise InfrastructureError("the block list of the key is not at hand", value=probe, next_step="run again")
        return self._contents[probe]

    def _case(self, takedown_id: str, parts: int) -> dict[str, Any]:
        opened = self._ledger.takedown_steps(takedown_id, OPENED)[0].facts
        clips = self._ledger.takedown_clips(takedown_id, parts)
        return {"takedown_id": takedown_id, **opened["blocks"], "clips": clips}
