"""Keeps a claim's lease alive from a thread while its stage runs."""

from __future__ import annotations

import threading
from types import TracebackType

from m4v.core.errors import InfrastructureError
from pipelines.ledger import Claim, ClaimLost, Ledger

LEASE_S = 60.0
RENEW_S = 15.0


class Lease:
    """Renews until closed, then gives the claim back. `check` raises ClaimLost once somebody else has it.

    A ledger that cannot be reached is asked again: whether the claim still stands is decided by its fence
    when the run is committed, not by our clock.
    """

    def __init__(self, ledger: Ledger, claim: Claim, lease_s: float = LEASE_S, renew_s: float = RENEW_S) -> None:
        self.claim = claim
        self._ledger, self._lease_s, self._renew_s = ledger, lease_s, renew_s
        self._stop = threading.Event()
        self._lost: ClaimLost | None = None
        self._thread = threading.Thread(target=self._keep, name=f"lease-{claim.stage_key[:8]}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            self._ledger.release(self.claim)

    def check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _keep(self) -> None:
        while not self._stop.wait(self._renew_s):
            try:
                self._ledger.renew(self.claim, self._lease_s)
            except ClaimLost as lost:
                self._lost = lost
                return
            except InfrastructureError:
                continue
