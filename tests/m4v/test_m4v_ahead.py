"""Items made in a thread a little ahead: order, errors, bound, closing."""

import gc
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from m4v.ahead import ahead


class Made:
    """A source that can be watched: what it has begun, and whether it was closed."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at = count, fails_at
        self.begun: list[int] = []
        self.closed = threading.Event()
        self.threads: set[str] = set()
        self.progress = threading.Condition()

    def items(self) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                with self.progress:
                    self.begun.append(number)
                    self.threads.add(threading.current_thread().name)
                    self.progress.notify_all()
                if number == self.fails_at:
                    raise ValueError(f"no item {number}")
                yield number
        finally:
            self.closed.set()

    def wait_for(self, count: int) -> None:
        with self.progress:
            assert self.progress.wait_for(lambda: len(self.begun) >= count, timeout=60)


def test_all_items_in_order_from_another_thread() -> None:
    made = Made(50)
    assert list(ahead(made.items())) == list(range(50))
    assert made.threads == {"ahead"}
    assert made.closed.is_set()
    assert list(ahead(Made(0).items())) == []


def test_no_more_than_the_bound_is_made_ahead() -> None:
    """With one item used, one waits and one stands before the full queue."""
    made = Made(10)
    items = ahead(made.items(), most=1)
    for used in range(7):
        assert next(items) == used
        made.wait_for(used + 3)
        assert len(made.begun) <= used + 4
    items.close()
    assert made.closed.is_set()
    assert len(made.begun) < 10


def test_an_error_comes_after_the_items_before_it() -> None:
    made = Made(10, fails_at=3)
    items = ahead(made.items(), most=5)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no item 3"):
        next(items)
    assert made.closed.is_set()
    assert "ahead" not in {thread.name for thread in threading.enumerate()}


def test_nothing_is_made_before_the_first_is_asked_for() -> None:
    made = Made(3)
    items = ahead(made.items())
    assert made.begun == []
    items.close()
    assert made.begun == []


def test_items_are_made_within() -> None:
    seen: list[str] = []

    @contextmanager
    def within() -> Iterator[None]:
        seen.append(threading.current_thread().name)
        yield
        seen.append("left")

    assert list(ahead(Made(2).items(), within=within)) == [0, 1]
    assert seen == ["ahead", "left"]


def test_closing_in_the_thread_itself_waits_for_nobody() -> None:
    """A collector of garbage may run there."""
    holder: list[Generator[int, None, None]] = []
    asked, closed = threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        yield 0
        assert asked.wait(timeout=60)
        holder[0].close()
        closed.set()
        yield 1

    holder.append(ahead(items()))
    assert next(holder[0]) == 0
    asked.set()
    assert closed.wait(timeout=60)
    for thread in threading.enumerate():
        if thread.name == "ahead":
            thread.join(timeout=60)
            assert not thread.is_alive()


def test_an_error_holds_no_circle() -> None:
    class Lacking(ValueError):
        """One that can be watched."""

    def failing() -> Generator[int, None, None]:
        yield 0
        raise Lacking("no item")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no item") as caught:
            list(ahead(failing()))
        held = weakref.ref(caught.value)
        del caught
        assert held() is None
    finally:
        gc.enable()


def test_an_abandoned_one_ends_its_thread() -> None:
    made = Made(1000)
    items = ahead(made.items())
    next(items)
    del items
    assert made.closed.wait(timeout=60)
