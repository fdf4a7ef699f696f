"""Feeding sinks from the ledger's outbox: every event at least once, in order, one deliverer a sink at a time.

An event counts as delivered when the ledger says so. A kill between the two repeats it, with the same identity.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from m4v.core.errors import ExitClass, InfrastructureError, M4VError
from pipelines.ledger import Claim, ClaimHeld, ClaimLost, EventRow, Ledger, new_id

LEASE_S = 60.0
RENEW_AFTER_S = 15.0  # with the longest send (config.MAX_TIMEOUT_S) still well inside the lease
BATCH = 200  # events read at a time, and at most repeated after a kill
CONFIRM_EVERY_S = 2.0


class Sink(Protocol):
    """Where events go. `send` returns when the other side has the event, or raises InfrastructureError (trying again
    may help) or another M4VError (somebody must act)."""

    def send(self, event: EventRow) -> None: ...

    def flush(self) -> None:
        """Make durable what was sent; called before the ledger is told."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Backoff:
    """Pause after failure n: base_s * factor**(n-1), at most max_s. One deliverer a sink needs no jitter."""

    base_s: float = 1.0
    factor: float = 2.0
    max_s: float = 300.0

    def pause_s(self, failures: int) -> float:
        return min(self.base_s * self.factor ** min(max(failures - 1, 0), 60), self.max_s)


@dataclass(frozen=True)
class Delivered:
    """What a delivery came to: `events` handed over, `waiting` still in the outbox. `busy`: another process delivers
    to this sink now. `error` stopped it at event `stopped_at`."""

    sink: str
    events: int
    waiting: int
    error: M4VError | None = None
    stopped_at: int | None = None
    busy: bool = False

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def may_retry(self) -> bool:
        """Whether trying again can help without anybody acting."""
        return self.error is not None and self.error.exit_class is ExitClass.INFRASTRUCTURE


def deliver(ledger: Ledger, name: str, open_sink: Callable[[], Sink], *, stop: Callable[[], bool] = bool) -> Delivered:
    """Hand the sink every event that it has not confirmed, until there is none, one fails, or `stop()`.

    Faults of the sink are in the answer, those of the ledger are raised (InfrastructureError).
    """
    if ledger.outbox(name).waiting == 0:
        return Delivered(name, 0, 0)
    try:
        claim = ledger.claim(_claim_key(name), f"delivery {new_id()}", LEASE_S)
    except ClaimHeld:
        return Delivered(name, 0, ledger.outbox(name).waiting, busy=True)
    try:
        return _Delivery(ledger, name, claim).run(open_sink, stop)
    finally:
        ledger.release(claim)


def _claim_key(name: str) -> str:
    return f"sink {name}"


class _Delivery:
    """One claimed pass over a sink's outbox."""

    def __init__(self, ledger: Ledger, name: str, claim: Claim) -> None:
        self._ledger, self._name, self._claim = ledger, name, claim
        self._sent = self._confirmed = 0
        self._events = 0
        self._renewed = self._told = time.monotonic()

    def run(self, open_sink: Callable[[], Sink], stop: Callable[[], bool]) -> Delivered:
        error: M4VError | None = None
        opened: list[Sink] = []
        try:
            _guarded(lambda: opened.append(open_sink()))
            try:
                self._feed(opened[0], stop)
            finally:
                _guarded(opened[0].close)
        except _SinkFault as fault:
            error = fault.error
        except ClaimLost:
            return Delivered(self._name, self._events, self._waiting(), busy=True)
        return self._report(error)

    def _feed(self, sink: Sink, stop: Callable[[], bool]) -> None:
        try:
            while not stop() and (batch := self._ledger.undelivered(self._name, BATCH)):
                for event in batch:
                    if stop():
                        break
                    self._renew()
                    _guarded(lambda e=event: sink.send(e))  # type: ignore[misc]
                    self._sent = event.seq
                    self._events += 1
                    if time.monotonic() - self._told > CONFIRM_EVERY_S:
                        self._confirm(sink)
                self._confirm(sink)
        except _SinkFault:
            self._confirm(sink)  # what came before the fault has arrived
            raise

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > RENEW_AFTER_S:
            self._claim = self._ledger.renew(self._claim, LEASE_S)
            self._renewed = time.monotonic()

    def _confirm(self, sink: Sink) -> None:
        self._told = time.monotonic()
        if self._sent > self._confirmed:
            _guarded(sink.flush)
            self._ledger.delivered(self._name, self._sent)
            self._confirmed = self._sent

    def _waiting(self) -> int:
        return self._ledger.outbox(self._name).waiting

    def _report(self, error: M4VError | None) -> Delivered:
        place = self._ledger.outbox(self._name)
        stopped_at = None if error is None else place.delivered_seq + 1
        return Delivered(self._name, self._events, place.waiting, error, stopped_at)


class _SinkFault(Exception):
    """A fault on the sink's side, told apart from the ledger's."""

    def __init__(self, error: M4VError) -> None:
        self.error = error


def _guarded(call: Callable[[], None]) -> None:
    """Faults of a sink as _SinkFault. What a client library raises unforeseen is a fault of that delivery as well:
    it must neither end a run nor pass an event over."""
    try:
        call()
    except M4VError as error:
        raise _SinkFault(error) from error
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise _SinkFault(InfrastructureError(f"the sink's client failed: {type(error).__name__}: {text}")) from error
