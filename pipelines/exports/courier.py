"""Delivers while a run works: a thread that is woken after each commit, and that no sink can make the run wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m4v.core.errors import M4VError
from pipelines.exports.config import SinkConfig
from pipelines.exports.delivery import Backoff, Delivered, deliver
from pipelines.exports.sinks import open_sink
from pipelines.exports.state import SinkState, read_state, write_state
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

CLOSE_GRACE_S = 5.0  # at the end of a run; what is left waits in the outbox
BUSY_PAUSE_S = 1.0
POLL_S = 5.0


@dataclass
class _Line:
    """One sink's progress: `due` is when it may be tried, on the monotonic clock; `told`, that it fails."""

    config: SinkConfig
    failures: int = 0
    due: float = 0.0
    told: bool = False


class Courier:
    """Feeds the sinks of a workspace until `close`. It reads the ledger through a connection pool of its own, and
    tells `on_note` once when a sink begins to fail and when it has recovered."""

    def __init__(
        self,
        workspace: Workspace,
        sinks: Sequence[SinkConfig],
        on_note: Callable[[str], None],
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        self._workspace, self._on_note, self._backoff = workspace, on_note, backoff
        self._lines = [_Line(config) for config in sinks]
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="m4v-courier", daemon=True)

    def wake(self) -> None:
        """The ledger has new events; the first call starts the thread."""
        self._wake.set()
        if self._lines and self._thread.ident is None:
            self._thread.start()

    def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """Deliver what can be delivered within `grace_s`, then stop; safe to call twice."""
        if not self._thread.is_alive():
            return
        self._deadline = time.monotonic() + grace_s
        self._closing.set()
        self._wake.set()
        self._thread.join(grace_s + 1.0)

    def _work(self) -> None:
        try:
            ledger = Ledger.open(self._workspace.ledger_url)
        except M4VError as error:
            self._on_note(f"sinks wait: {error.message}")
            return
        with ledger:
            for line in self._lines:
                line.failures = read_state(self._workspace, line.config.name).failures
            while True:
                closing = self._closing.is_set()  # before the pass, so that one whole pass follows the last wake
                self._wake.clear()
                for line in self._lines:
                    self._try(ledger, line, closing)
                if closing or self._overdue():
                    return
                self._wake.wait(self._pause_s())

    def _try(self, ledger: Ledger, line: _Line, closing: bool) -> None:
        """One delivery if the sink may be tried now; a failing one gets no last try: it would only delay the end."""
        if time.monotonic() < line.due or self._overdue():
            return
        if closing and line.failures:
            return
        name = line.config.name
        try:
            done = deliver(
                ledger, name, lambda: open_sink(line.config, ledger, self._workspace.home), stop=self._overdue
            )
            self._judge(line, done)
        except M4VError as error:  # the ledger or the home itself
            line.failures += 1
            line.due = time.monotonic() + self._backoff.pause_s(line.failures)
            self._on_note(f"sink {name} waits: {error.message}")

    def _judge(self, line: _Line, done: Delivered) -> None:
        name = line.config.name
        if done.error is not None:
            line.failures += 1
            line.due = time.monotonic() + self._backoff.pause_s(line.failures)
            if not line.told:
                line.told = True
                self._on_note(f"sink {name} takes no events, {done.waiting} wait in the outbox: {done.error.message}")
            write_state(self._workspace, name, SinkState.failed(line.failures, done))
        elif done.busy:
            line.due = time.monotonic() + BUSY_PAUSE_S
        elif done.events:
            if line.told:
                self._on_note(f"sink {name} takes events again")
            line.failures, line.told = 0, False
            write_state(self._workspace, name, SinkState())

    def _overdue(self) -> bool:
        return time.monotonic() > self._deadline

    def _pause_s(self) -> float:
        """Until the first sink that waits is due; a stage that begins wakes nobody, so look now and then."""
        now = time.monotonic()
        due = [line.due - now for line in self._lines if line.due > now]
        return max(min([POLL_S, *due]), 0.05)
