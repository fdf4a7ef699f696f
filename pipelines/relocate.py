"""A home or store that was moved elsewhere: the ledger's locations follow, each once its bytes there are verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from m4v.core.artifacts import verify
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.gc.artifacts import lying
from pipelines.ledger import ArtifactRow, Ledger


class Outcome(StrEnum):
    """Of one artifact: its location was rewritten; it is not whole at the new place; somebody moved it meanwhile."""

    MOVED = "moved"
    DAMAGED = "damaged"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Relocated:
    """What became of one artifact; `detail` says why it stays where it was."""

    artifact: ArtifactRow
    uri: str
    outcome: Outcome
    detail: str = ""

    def to_json(self) -> dict[str, object]:
        row = self.artifact
        return {
            "artifact_id": row.artifact_id, "kind": str(row.kind), "from": row.uri, "uri": self.uri,
            "outcome": str(self.outcome), "detail": self.detail,
        }  # fmt: skip


def relocate(ledger: Ledger, old: str, new: str, *, by: str, deep: bool = True) -> Iterator[Relocated]:
    """Rewrite the location of every artifact recorded below `old` to the same place below `new`, once its files there
    are those of its manifest (with their digests if `deep`, else by size). One transaction each: stopped, the same
    call goes on. One whose bytes were deleted has nothing to verify; its location follows all the same.

    Raises InputError when nothing is recorded below either place, or one lies in the other.
    """
    before, after = Storage(old).uri, Storage(new).uri
    if f"{before}/".startswith(f"{after}/") or f"{after}/".startswith(f"{before}/"):
        raise InputError("old and new place must not lie in each other", value=old, where=new)
    rows = ledger.artifacts_below(before)
    if not rows and not ledger.artifacts_below(after):
        known = next(iter(ledger.artifacts(limit=1)), None)
        raise InputError(
            "the ledger has no artifact there", value=before, where=f"one lies at {known.uri}" if known else None,
            next_step="m4v artifacts show ID tells where one is recorded",
        )  # fmt: skip
    for row in rows:
        uri = after + row.uri[len(before) :]
        problem = _problem(row, uri, deep)
        if problem is not None:
            yield Relocated(row, uri, Outcome.DAMAGED, problem)
        elif ledger.move_location(row, uri, by=by):
            yield Relocated(row, uri, Outcome.MOVED)
        else:
            yield Relocated(row, uri, Outcome.ELSEWHERE, "its location was changed meanwhile")


def _problem(row: ArtifactRow, uri: str, deep: bool) -> str | None:
    """Why an artifact cannot be said to lie at `uri`."""
    if row.deletion is not None:
        left = next(lying(replace(row, uri=uri)), None) if row.deletion == "done" else None
        return None if left is None else f"its bytes were deleted, but {left} is there"
    try:
        verify(Storage(uri), row.artifact_id, deep=deep)
    except (DataIntegrityError, InputError) as error:
        return error.what
    return None
