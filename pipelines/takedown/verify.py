"""Proves a receipt against ledger and store: every claim of it is recomputed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m4v.core.artifacts import ArtifactKind, verify
from m4v.core.canonical import digest_json
from m4v.core.errors import InputError, M4VError
from m4v.core.shard_index import INDEX, read_index
from pipelines.gc.artifacts import lying
from pipelines.ledger import Ledger
from pipelines.takedown.affected import artifact_of
from pipelines.takedown.receipt import DIGEST
from pipelines.takedown.replace import PROOF, samples_digest
from pipelines.takedown.versions import versions
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Check:
    """One claim of a receipt and whether it holds; `detail` says what was found."""

    claim: str
    ok: bool
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"claim": self.claim, "ok": self.ok, "detail": self.detail}


def verify_receipt(ledger: Ledger, workspace: Workspace, receipt: Mapping[str, Any]) -> list[Check]:
    """Check every claim; raises InputError for something that is no receipt."""
    for name in ("takedown", "clips", "withdrawn", "replaced", "deleted", "chain", DIGEST):
        if name not in receipt:
            raise InputError("this is no receipt of a takedown", value=name, next_step="m4v takedown receipt CASE")
    return [
        _own_digest(receipt),
        _recorded(ledger, receipt),
        *_chain(ledger, receipt),
        *_withdrawn(ledger, receipt),
        *_replaced(ledger, workspace, receipt),
        *_deleted(ledger, receipt),
        _blocked(ledger, receipt),
    ]


def _own_digest(receipt: Mapping[str, Any]) -> Check:
    body = {name: value for name, value in receipt.items() if name != DIGEST}
    found = digest_json(body)
    return Check("the receipt's digest is that of its content", found == receipt[DIGEST], found)


def _recorded(ledger: Ledger, receipt: Mapping[str, Any]) -> Check:
    case = str(receipt["takedown"]["takedown_id"])
    issued = [step.item for step in ledger.takedown_steps(case, "receipt")]
    return Check("the ledger issued this receipt", receipt[DIGEST] in issued, f"{len(issued)} issued for {case}")


def _chain(ledger: Ledger, receipt: Mapping[str, Any]) -> Iterator[Check]:
    report = ledger.verify_chain()
    yield Check("the ledger's event chain verifies", report.ok, "; ".join(report.problems[:1]))
    seq = int(receipt["chain"]["seq"])
    found = ledger.events(after=seq - 1, limit=1)
    same = bool(found) and (found[0].seq, found[0].hash) == (seq, receipt["chain"]["hash"])
    yield Check(f"event {seq} is the one that the receipt names", same, found[0].hash if found else "missing")


def _withdrawn(ledger: Ledger, receipt: Mapping[str, Any]) -> Iterator[Check]:
    case = receipt["takedown"]["takedown_id"]
    for row in receipt["withdrawn"]:
        found = ledger.withdrawal(row["artifact_id"], row["kind"])
        ok = found is not None and found.takedown_id == case
        yield Check(f"{row['kind']} {row['artifact_id'][:12]} is withdrawn", ok)


def _replaced(ledger: Ledger, workspace: Workspace, receipt: Mapping[str, Any]) -> Iterator[Check]:
    clips = pa.array(sorted({c["clip_id"] for c in receipt["clips"]}), pa.string())
    kinds = {row["artifact_id"]: row["kind"] for row in receipt["withdrawn"]}
    for made in receipt["replaced"]:
        successor = made.get("successor")
        if successor is None:
            continue
        kind = kinds.get(made["artifact_id"], "")
        claim = f"{kind} {successor[:12]} in the place of {made['artifact_id'][:12]}"
        try:
            artifact = artifact_of(ledger, workspace, successor, kind)
            if ledger.artifact(successor, kind).deletion is not None:
                yield Check(f"{claim}: its bytes verify", True, "deleted since by the ledger's own record")
                continue
            verify(artifact.storage, successor, deep=True)
            yield Check(f"{claim}: its bytes verify", True)
            if kind == ArtifactKind.DATASET:
                yield from _holds(claim, read_index(artifact.path(INDEX), [*PROOF]), clips, made)
        except (M4VError, OSError) as error:
            yield Check(f"{claim}: its bytes verify", False, str(error))


def _holds(claim: str, index: pa.Table, clips: pa.Array, made: Mapping[str, Any]) -> Iterator[Check]:
    held = pc.any(pc.is_in(index["clip_id"], value_set=clips)).as_py()
    yield Check(f"{claim}: none of the clips is in it", not held)
    found = samples_digest(index)
    yield Check(f"{claim}: every other sample is as it was", found == made["samples_digest"], found)


def _deleted(ledger: Ledger, receipt: Mapping[str, Any]) -> Iterator[Check]:
    for one in receipt["deleted"]:
        kind, _, artifact_id = one["item"].partition(" ")
        if kind not in set(ArtifactKind):
            continue  # items and unfinished work: nothing says where they lay
        row = ledger.artifact(artifact_id, kind)
        kept = (f"version {v.version_id} of {v.key}" for v in versions(row.uri))
        left = next(chain(lying(row), kept), None)
        yield Check(f"bytes of {one['item'][:24]} are gone", left is None, left or "")


def _blocked(ledger: Ledger, receipt: Mapping[str, Any]) -> Check:
    case = receipt["takedown"]["takedown_id"]
    known = {c["clip_id"] for c in ledger.takedown_clips(case)}
    missing = sorted({c["clip_id"] for c in receipt["clips"]} - known)
    blocked = any(name == case for name, _ in ledger.blocked_parts())
    return Check("the clips may not come in again", blocked and not missing, missing[0] if missing else "")
