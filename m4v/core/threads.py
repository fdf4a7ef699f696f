"""Work on several items at once, for calls that leave the interpreter to others: digests, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 8
ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


def together(make: Callable[[ItemT], ValueT], items: Iterable[ItemT]) -> list[ValueT]:
    """`make` of each item, in the items' order; raises what the first of them raised."""
    listed = list(items)
    if len(listed) < 2:
        return [make(item) for item in listed]
    with ThreadPoolExecutor(min(len(listed), THREADS), thread_name_prefix="together") as pool:
        return list(pool.map(make, listed))
