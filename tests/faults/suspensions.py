"""Suspends process trees, as a cluster does for a more urgent job: all stop, later all go on."""

import signal
import time

from pipelines.processes import descendants, identify, send


def suspend(pid: int, seconds: float) -> int:
    """Stop `pid` and everything below it for so long; returns how many processes that were."""
    stopped = set()
    while found := {p for p in [identify(pid), *descendants(pid)] if p is not None} - stopped:
        for process in found:  # again, for what was begun meanwhile
            send(process, signal.SIGSTOP)
        stopped |= found
    time.sleep(seconds)
    for process in stopped:
        send(process, signal.SIGCONT)
    return len(stopped)
