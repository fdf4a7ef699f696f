"""Ctrl-C and SIGTERM while a pipeline run is under way: the first one drains it, the second ends it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"draining: stages save their state and stop; press Ctrl-C again to end at once\n"


@contextmanager
def drain_on_signal(drain: Callable[[], None], *, as_flow: bool = False) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `drain`, wherever it meets the main thread; the second ends at once.

    Without Prefect the second Ctrl-C is an exception that cancels the stage. In a flow (`as_flow`) stages run in
    threads, which no exception reaches: the process ends, and the supervisors end the stages. Outside the main
    thread signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def begin(number: int, _: object) -> None:
        interrupt = number == signal.SIGINT and not as_flow
        signal.signal(number, signal.default_int_handler if interrupt else signal.SIG_DFL)
        # Neither takes a lock that the interrupted code may hold: a flag's, or that of the buffer behind stderr.
        os.write(2, _SAID)
        threading.Thread(target=drain, name="drain", daemon=True).start()

    before = {number: signal.signal(number, begin) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
