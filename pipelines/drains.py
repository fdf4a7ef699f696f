"""Looks in the ledger whether running work was asked to drain: another process may ask (`m4v runs drain`, a takedown).

One of these belongs to a pipeline run. A request for the whole run sets the run's own drain flag; one for a stage
key concerns only the work under that claim.
"""

from __future__ import annotations

import logging
import threading
import time

from m4v.core.errors import Drained, InfrastructureError
from pipelines.ledger import Claim, DrainRow, Ledger

LOOK_S = 1.0

_log = logging.getLogger(__name__)


class DrainRequests:
    """Safe to share between threads. `flag` is the run's own wish to stop, which a Ctrl-C sets as well."""

    def __init__(self, ledger: Ledger, pipeline_run_id: str, flag: threading.Event) -> None:
        self._ledger, self._run, self.flag = ledger, pipeline_run_id, flag
        self._looked: dict[tuple[str, int], float] = {}
        self._found: dict[tuple[str, int], DrainRow] = {}

    def wanted(self, claim: Claim | None = None) -> DrainRow | None:
        """The request that concerns the run, or the work under `claim`; asks the ledger at most every `LOOK_S`.

        A ledger that cannot be reached asks nothing: committing will tell.
        """
        place = (claim.stage_key, claim.fence) if claim is not None else ("", 0)
        now = time.monotonic()
        if place in self._found or now - self._looked.get(place, -LOOK_S) < LOOK_S:
            return self._found.get(place)
        self._looked[place] = now
        try:
            found = self._ledger.drain_wanted(claim=claim, pipeline_run_id=self._run)
        except InfrastructureError as error:
            _log.warning("drain requests could not be read: %s", error)
            return None
        if found is not None:
            self._found[place] = found
            if found.pipeline_run_id is not None:
                self.flag.set()
        return found

    def pause(self, seconds: float, claim: Claim, where: str) -> None:
        """Wait; raises Drained as soon as the work is asked to stop."""
        until = time.monotonic() + seconds
        while True:
            found = self.wanted(claim)
            left = until - time.monotonic()
            if found is not None or self.flag.wait(max(0.0, min(left, LOOK_S))):
                raise Drained(f"drained while waiting to retry{as_asked(found)}", where=where)
            if left <= LOOK_S:
                return


def as_asked(request: DrainRow | None) -> str:
    """`, as ada asked: takedown …` for a message; empty without a request."""
    return "" if request is None else f", as {request.requested_by} asked: {request.reason}"
