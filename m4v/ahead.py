"""Items made in a thread of their own, a little ahead of whoever takes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from queue import Full, Queue
from typing import NamedTuple, TypeVar

T = TypeVar("T")
POLL_S = 0.05


class _Ended(NamedTuple):
    """The last thing a thread says: why it ended, None when there was nothing left to make."""

    error: BaseException | None


def ahead(
    items: Generator[T, None, None],
    most: int = 1,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Generator[T, None, None]:
    """`items` in their order; while one is used, the next `most` and one more under way are made in a thread, inside
    `within()`.

    What `items` raises is raised here, behind the items before it. Closing this closes `items`, which first finishes
    the item under way. The thread begins with the first item that is asked for.
    """
    ready: Queue[tuple[T] | _Ended] = Queue(most)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, ready, stop, within), name="ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(found := ready.get(), _Ended):
            yield found[0]
            del found  # not kept alive while the next one is waited for
        error = found.error
        del found
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: a circle would keep what the frames hold
    finally:
        stop.set()
        if threading.current_thread() is not thread:  # a collector of garbage may close this there: it ends by itself
            thread.join()


def _make(
    items: Generator[T, None, None],
    ready: Queue[tuple[T] | _Ended],
    stop: threading.Event,
    within: Callable[[], AbstractContextManager[object]],
) -> None:
    error: BaseException | None = None
    try:
        with within(), closing(items):
            for item in items:
                _put(ready, (item,), stop)
                del item
                if stop.is_set():
                    break
    except BaseException as raised:  # it belongs to whoever takes the items
        error = raised
    ended = _Ended(error)
    del error  # its traceback holds this frame
    _put(ready, ended, stop)
    del ended


def _put(ready: Queue[tuple[T] | _Ended], found: tuple[T] | _Ended, stop: threading.Event) -> None:
    """Waits for a place, as long as anybody takes items."""
    while not stop.is_set():
        with suppress(Full):
            ready.put(found, timeout=POLL_S)
            return
