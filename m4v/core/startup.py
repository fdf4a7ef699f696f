"""Start a process without what it does not use: each of these costs every stage more time than its own code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Hiding:
    """Finder of modules that says of `names` that they are not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r} here: it is not needed", name=name)


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Inside, importing one of these packages fails as if it were not installed; those imported before stay.

    For libraries that import others only to see whether they are there.
    """
    finder = _Hiding(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is collected: imports make none, and looking for it takes a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep_pandas_out() -> None:
    """Let pyarrow take Python values without pandas, which it imports at the first list to recognise its series.

    Nothing here hands it one. Conversions *to* pandas import it all the same.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow

    with hidden("pandas"):
        pyarrow.array([0])
