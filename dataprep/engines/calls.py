"""What every engine does with one item, and the settings that make its result the same in each of them.

Numeric libraries run single-threaded here: a sum split over another number of threads rounds differently.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dataprep.quarantine import ItemError, ItemFailure

Function = Callable[[Any], Any]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Returned:
    """The function's result, or the ItemFailure that stands for it, and the processor time that it took."""

    value: Any
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Raised:
    """The function raised something that is not an ItemError: a bug, or infrastructure. It goes to the caller."""

    error: BaseException
    trace: str


Reply = Returned | Raised


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Hold OpenCV, and torch when it is loaded, at one thread inside the block."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    torch = sys.modules.get("torch")
    torch_before = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
        if torch is not None:
            torch.set_num_threads(torch_before)


def call(function: Function, item: Any) -> Reply:
    """Run one item; an ItemError becomes an ItemFailure, any other exception is carried to the caller."""
    before = time.process_time()
    try:
        with single_threaded():
            return Returned(function(item), time.process_time() - before)
    except ItemError as error:
        return Returned(ItemFailure(error.reason, error.detail), time.process_time() - before)
    except Exception as error:
        return Raised(_picklable(error), traceback.format_exc())


def prepare_worker() -> None:
    """Set up a worker process once: one thread a library, whatever the machine offers."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    import cv2

    cv2.setNumThreads(1)


def result_of(reply: Reply) -> Any:
    """The value of a reply; raises the carried exception with the worker's traceback as a note."""
    if isinstance(reply, Raised):
        reply.error.add_note(f"in an engine worker:\n{reply.trace}")
        raise reply.error
    return reply.value


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
