"""Items of coming steps made in the background, handed out in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Prefetcher(Generic[ItemT]):
    """Makes items for steps start..stop-1 in `workers` threads, at most `depth` of them ahead of the consumer, and
    hands them out in order; an error surfaces at its step. `make` must give the same item whichever thread calls it."""

    def __init__(
        self, make: Callable[[int], ItemT], start: int, stop: int, depth: int = 2, *, workers: int = 1
    ) -> None:
        self._make, self._stop, self._depth = make, stop, max(depth, workers)
        self._next = self._wanted = start  # to be made; to be handed out
        self._made: dict[int, ItemT | BaseException] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{n}", daemon=True) for n in range(max(1, workers))
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[tuple[int, ItemT]]:
        while (step := self._wanted) < self._stop:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted in self._made)
                item = self._made.pop(step)
                self._wanted += 1
                self._changed.notify_all()
            if isinstance(item, BaseException):
                raise item
            yield step, item

    def close(self) -> None:
        """Stop making; items under way are finished and dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (step := self._take()) is not None:
            try:
                item: ItemT | BaseException = self._make(step)
            except BaseException as error:  # handed to the consumer, whatever it is
                item = error
            with self._changed:
                self._made[step] = item
                self._changed.notify_all()

    def _take(self) -> int | None:
        """The next step to make, once there is room for it; None when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next - self._wanted < self._depth or self._done)
            if self._closed or self._done:
                return None
            self._next += 1
            return self._next - 1

    @property
    def _done(self) -> bool:
        return self._next >= self._stop
