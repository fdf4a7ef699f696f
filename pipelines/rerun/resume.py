"""A verification that was stopped goes on: verdicts are events, so what it found already need not be found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from m4v.core.canonical import plain_json
from m4v.core.errors import InputError
from pipelines.environment import host_facts
from pipelines.ledger import Ledger, RunRow, VerificationRow
from pipelines.provenance import BlobStore
from pipelines.rerun.verdict import StageVerdict, Tolerance, Verdict
from pipelines.rerun_folders import rerun_folders

ALLOWED = 20  # allowed differences that an event lists
_STAGE = TypeAdapter(StageVerdict)


@dataclass(frozen=True)
class Stopped:
    """A verification that did not come to its end, and its verdicts by stage run. One that failed is tried again."""

    verification_id: str
    verdicts: Mapping[str, StageVerdict] = field(default_factory=dict)


def stopped(
    ledger: Ledger,
    blobs: BlobStore,
    home: Path,
    subject: str,
    runs: Sequence[tuple[RunRow, tuple[str, ...]]],
    tolerance: Tolerance,
) -> Stopped | None:
    """The newest verification of `subject` that was stopped on this machine under the same terms: tolerance, and for
    each run the differences that were allowed. None where there is none, or a process is still at it."""
    concluded = {row.facts.get("verification_id") for row in ledger.verifications(subject)}
    found: dict[str, dict[str, VerificationRow]] = {}
    for run, words in runs:
        terms = {
            "subject": subject, "tolerance": tolerance.to_json(), "host": plain_json(host_facts()),
            "allowed": list(words[:ALLOWED]),
        }  # fmt: skip
        for row in ledger.verifications(run.run_id):
            same = all(row.facts.get(name) == value for name, value in terms.items())
            if same and row.verdict != Verdict.FAILED and row.facts["verification_id"] not in concluded:
                found.setdefault(row.facts["verification_id"], {})[run.run_id] = row
    newest = max(found, default=None)  # ids are in the order of time
    if newest is None or any(f.is_alive and f.path.name.startswith(newest) for f in rerun_folders(home)):
        return None
    read = {run_id: _read(blobs, row) for run_id, row in found[newest].items()}
    return Stopped(newest, {run_id: verdict for run_id, verdict in read.items() if verdict is not None})


def _read(blobs: BlobStore, row: VerificationRow) -> StageVerdict | None:
    """The whole verdict; None once its details are gone: it is found again then."""
    try:
        return _STAGE.validate_json(blobs.get(row.facts["details"]))
    except InputError:
        return None
