"""Outputs on their way into the store are held, so that garbage collection does not take what is being published."""

from __future__ import annotations

import time
from collections.abc import Sequence

from m4v.core.stage import OutputResult
from pipelines.gc.artifacts import finish_deletions
from pipelines.ledger import ArtifactDeleted, ClaimHeld, Ledger

WAIT_S, POLL_S = 600.0, 1.0


def hold_outputs(ledger: Ledger, pipeline_run_id: str, outputs: Sequence[OutputResult]) -> None:
    """Hold artifacts before their bytes are published.

    Old bytes of the very artifact may be going just now: that is waited for, and what a collection that died has left
    is finished first. Raises ClaimHeld when a collection is still at it after ten minutes.
    """
    keys = [(o.artifact_id, str(o.kind)) for o in outputs]
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            ledger.hold(pipeline_run_id, keys, publishing=True)
            return
        except ArtifactDeleted:
            try:
                finish_deletions(ledger, f"pipeline run {pipeline_run_id}")
            except ClaimHeld:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
