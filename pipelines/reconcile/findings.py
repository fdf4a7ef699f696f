"""What a reconciliation finds, and asking all who may know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from m4v.core.errors import M4VError


class FindingKind(StrEnum):
    LOST_ATTEMPT = "lost-attempt"  # open in the ledger, its claim is not
    LOST_RUN = "lost-run"  # open in the ledger, the process that conducted it is gone
    LEFT_PROCESS = "left-process"  # of an attempt that is lost
    ORPHAN_JOB = "orphan-job"  # a cluster job whose attempt has ended
    UNWATCHED_JOB = "unwatched-job"  # a cluster job that nobody waits for; the next run of its stage attaches to it
    FLOW_RUN = "flow-run"  # Prefect says something else than the ledger


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it is said to be.

    - subject: id of the attempt, pipeline run, cluster job or flow run.
    - says: what is the matter; repair: what was done about it, or would be, or what a person can do.
    - repaired: it is as it should be now.
    """

    kind: FindingKind
    subject: str
    says: str
    repair: str
    repaired: bool

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def ask_all(
    parts: Mapping[str, Callable[[], list[Finding] | None]],
) -> tuple[list[Finding], dict[str, bool], list[M4VError]]:
    """What all found, which could be asked, and why others could not: one that fails keeps nobody else from work."""
    found: list[Finding] = []
    asked, problems = dict.fromkeys(parts, False), []
    for name, part in parts.items():
        try:
            made = part()
        except M4VError as error:
            problems.append(error)
            continue
        asked[name] = made is not None
        found += made or []
    return found, asked, problems
