"""The receipt of a takedown: what was asked, what was done, by digests, tied to the ledger's event chain.

Canonical JSON whose own digest the ledger keeps as an event; the Markdown says the same for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m4v.core.canonical import digest_json
from pipelines.ledger import Ledger, StepRow, TakedownRow
from pipelines.ledger.reach_facts import FINISHED
from pipelines.ledger.types import iso

SCHEMA = 1
DIGEST = "digest"
DUE = "due from"
RECEIPT, CLOSED = "receipt", FINISHED
FOLDER = "takedowns"
ENDINGS = (RECEIPT, CLOSED)  # steps that follow from the others


def make_receipt(ledger: Ledger, case: TakedownRow) -> dict[str, Any]:
    """The receipt of a case as it stands, from the ledger's rows alone: the same rows give the same bytes.

    `chain` is the last event of the case before the receipt; whoever holds the receipt can see whether the history
    up to there was changed.
    """
    steps = [s for s in ledger.takedown_steps(case.takedown_id) if s.step not in ENDINGS]
    opened = next(s for s in steps if s.step == "opened").facts
    event = [e for e in ledger.events(subject=case.takedown_id, limit=None) if e.payload.get("step") not in ENDINGS][-1]
    body = {
        "schema_version": SCHEMA,
        "takedown": {
            "takedown_id": case.takedown_id, "selector": case.selector, "reason": case.reason,
            "requested_by": case.requested_by, "requested_at": iso(case.requested_at),
        },
        "policy": opened["policy"],
        "blocks": opened["blocks"],
        "clips": ledger.takedown_clips(case.takedown_id),
        "withdrawn": [
            {"artifact_id": w.artifact_id, "kind": str(w.kind), "reason": w.reason}
            for w in ledger.withdrawals(case.takedown_id)
        ],
        "drained": _items(steps, "drained", "attempt_id"),
        "replaced": _items(steps, "replaced", "artifact_id"),
        "deleted": _items(steps, "deleted", "item"),
        "deletion": _deletion(steps, opened["policy"]),
        "affected": next((s.facts for s in reversed(steps) if s.step == "impact"), {}),
        "retrain": next((s.facts["cures"] for s in reversed(steps) if s.step == "retrain"), []),
        "remaining": remaining(opened["policy"]),
        "chain": {"seq": event.seq, "hash": event.hash},
    }  # fmt: skip
    return {**body, DIGEST: digest_json(body)}


def remaining(policy: dict[str, Any]) -> list[str]:
    """What a takedown leaves where it is, in words: nobody shall think it gone."""
    left = [
        "source files at their collections' locations, and media inside of generated source artifacts",
        "rows of the ledger: ids, spans, hashes and captions' digests of the clips",
        "checkpoints, samples and scores that were made from the clips (listed under `affected`)",
    ]
    return left if policy["delete"] != "keep" else [*left, "bytes of the withdrawn artifacts (policy: keep)"]


def _items(steps: Sequence[StepRow], step: str, name: str) -> list[dict[str, Any]]:
    return [{name: s.item, **s.facts} for s in steps if s.step == step]


def _deletion(steps: Sequence[StepRow], policy: dict[str, Any]) -> str:
    if any(s.step == "deletion" for s in steps):
        return "done"
    return "kept" if policy["delete"] == "keep" else f"{DUE} {policy['delete_from']}"


def to_markdown(receipt: dict[str, Any]) -> str:
    """The receipt for people."""
    case, affected = receipt["takedown"], receipt["affected"]
    lines = [
        f"# Takedown {case['takedown_id']}", "",
        f"- asked for by **{case['requested_by']}** at {case['requested_at']}: {case['reason']}",
        f"- clips: {len({c['clip_id'] for c in receipt['clips']})}; bytes: {receipt['deletion']}",
        f"- ledger event {receipt['chain']['seq']}, hash `{receipt['chain']['hash']}`",
        f"- receipt digest `{receipt[DIGEST]}`", "",
        "## Withdrawn", "", "| artifact | kind | why | in its place |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    successors = {r["artifact_id"]: r for r in receipt["replaced"]}
    for row in receipt["withdrawn"]:
        made = successors.get(row["artifact_id"], {})
        place = f"`{made['successor']}`" if made.get("successor") else made.get("note", "-")
        lines.append(f"| `{row['artifact_id']}` | {row['kind']} | {row['reason']} | {place} |")
    lines += ["", "## New versions", ""]
    for made in receipt["replaced"]:
        if made.get("samples_digest"):
            lines.append(_told_version(made))
    lines += ["", "## Deleted", "", *(f"- {d['item']}: {_told(d)}" for d in receipt["deleted"])]
    lines += ["", "## Affected checkpoints", ""]
    for one in affected.get("checkpoints", []):
        lines.append(f"- `{one['artifact_id']}` ({one['stage']}): {one['verdict']}, {_uses(one)}")
    lines += ["", "## Retrain", ""]
    for cure in receipt["retrain"]:
        names = ", ".join(cure["channels"]) or "no channel"
        lines.append(f"- {names}: `{cure['command']}` runs {', '.join(cure['runs_again']) or 'nothing'} again")
    return "\n".join([*lines, "", "## Left where it is", "", *(f"- {text}" for text in receipt["remaining"]), ""])


def _uses(checkpoint: dict[str, Any]) -> str:
    return "uses not counted" if checkpoint["uses"] is None else f"{checkpoint['uses']} uses"


def _told_version(made: dict[str, Any]) -> str:
    kept = f"{made['samples_kept']} samples unchanged (digest `{made['samples_digest']}`)"
    shards = f"{len(made['shards_rewritten'])} shards rewritten, {made['shards_shared']} shared"
    return f"- `{made['successor']}`: {kept}, {made['samples_removed']} removed; {shards}"


def _told(deleted: dict[str, Any]) -> str:
    files, size, freed = deleted.get("files"), deleted["size_bytes"], deleted["bytes_freed"]
    count = f"{files} files, " if files is not None else ""
    return f"{count}{size} bytes, of which {size - freed} still stand in versions that share them"
