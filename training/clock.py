"""Where the time of a step goes: data, forward, backward, optimiser, communication, save, validation.

On a GPU the parts are measured by events on its stream, read once the step is over, so that measuring does not
wait. Communication is what the stream of the computation waits for: collectives hidden behind it do not count.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

_COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_reduce_coalesced", "all_to_all",
    "all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "gather_object", "reduce", "reduce_scatter",
    "reduce_scatter_tensor",
)  # fmt: skip
COMMUNICATION = "communication"


@dataclass
class Timing:
    """Seconds of one step by part; communication is in no other part."""

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    communication: float = 0.0
    validation: float = 0.0
    save: float = 0.0
    total: float = 0.0

    def add(self, name: str, seconds: float) -> None:
        setattr(self, name, getattr(self, name) + seconds)


class Mark:
    """A moment: of the host, or on a GPU of its current stream."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        self._host = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._host = time.perf_counter()

    def seconds_to(self, later: Mark) -> float:
        """On a GPU both must have been reached."""
        if self._event is not None:
            return float(self._event.elapsed_time(later._event)) / 1000
        return later._host - self._host


class StepClock:
    """Parts of the step under way. While it is entered, collectives of this process count as communication."""

    _running: StepClock | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, str, Mark, Mark]] = []  # part, the part around it, begin, end
        self._open = ""
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def __enter__(self) -> StepClock:
        StepClock._running = self
        return self

    def __exit__(self, *_: object) -> None:
        StepClock._running = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`, and no longer as the part around it."""
        outer, begin = self._open, Mark(self._device)
        self._open = name
        try:
            yield
        finally:
            self._open = outer
            self._spans.append((name, outer, begin, Mark(self._device)))

    def read(self) -> Timing:
        """Seconds by part; waits for the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        timing = Timing()
        for name, outer, begin, end in self._spans:
            seconds = begin.seconds_to(end)
            timing.add(name, seconds)
            if outer:
                timing.add(outer, -seconds)
        return timing

    @classmethod
    def collective(cls, call: Callable[[], Any]) -> Any:
        """Run a collective, or a wait for one, as communication of the step under way."""
        clock = cls._running
        hidden = clock is None or clock._open == COMMUNICATION
        if clock is None or hidden or (clock._stream and torch.cuda.current_stream(clock._device) != clock._stream):
            return call()
        with clock.part(COMMUNICATION):
            return call()


class _TimedWork:
    """A pending collective whose `wait` counts as communication."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self, *arguments: Any) -> Any:
        return StepClock.collective(lambda: self._work.wait(*arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        work = StepClock.collective(lambda: function(*arguments, **options))
        return _TimedWork(work) if hasattr(work, "wait") else work

    return call


@functools.cache
def time_collectives() -> None:
    """Let `StepClock` see this process's collectives. Before DeepSpeed starts, which keeps some of the functions."""
    for name in _COLLECTIVES:
        setattr(distributed, name, _timed(getattr(distributed, name)))
