"""Where rank 0 shows a running stage: JSON lines, TensorBoard and, where asked for, Prometheus.

All of it lies in the attempt's folder, beside the log. Rows of the metrics come again with every attempt from the
saves behind it, so that each attempt's files hold every step of its line exactly once; timings are the attempt's own.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.exporter import Exporter
from training.tensorboard import EventFile

LIVE_METRICS, TIMINGS, TENSORBOARD = "metrics.jsonl", "timings.jsonl", "tensorboard"
Row = Mapping[str, object]


class Monitor:
    """Sinks of one trainer. `before` are the rows of the saved steps behind it."""

    def __init__(self, folder: Path, stage: str, before: Sequence[Row]) -> None:
        self._exporter = Exporter.from_environment(stage)
        self._rows = (folder / LIVE_METRICS).open("w", buffering=1)
        self._timings = (folder / TIMINGS).open("a", buffering=1)
        for row in before:
            self._rows.write(_line(row))
        self._queue: queue.SimpleQueue[tuple[float, int, dict[str, float]] | None] = queue.SimpleQueue()
        # A long history takes seconds to frame and checksum: beside the first steps, not before them.
        self._thread = threading.Thread(
            target=self._write_events, args=(folder / TENSORBOARD, tuple(before)), name="tensorboard", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int | None:
        """Where Prometheus finds the values, if it is asked to."""
        return None if self._exporter is None else self._exporter.port

    def step(self, row: Row, timings: Row) -> None:
        """Show a finished step: its row of the metrics, and its seconds, speed and memory."""
        number = int(str(row["step"]))
        self._rows.write(_line(row))
        self._timings.write(_line({"step": number, **timings}))
        values = scalars(row)
        measured = {f"speed/{name}": value for name, value in scalars(timings).items()}
        self._queue.put((time.time(), number, {f"train/{n}": v for n, v in values.items()} | measured))
        if self._exporter is not None:
            self._exporter.set({**values, **scalars(timings), "step": number + 1})

    def close(self) -> None:
        """Write what is left and stop serving."""
        self._queue.put(None)
        self._thread.join()
        self._rows.close()
        self._timings.close()
        if self._exporter is not None:
            self._exporter.close()

    def _write_events(self, folder: Path, before: Sequence[Row]) -> None:
        now = time.time()
        events = EventFile(folder, now, f"{os.getpid()}.{time.monotonic_ns()}")
        for row in before:
            events.write(now, int(str(row["step"])), {f"train/{n}": v for n, v in scalars(row).items()})
        while (item := self._queue.get()) is not None:
            events.write(*item)
        events.close()


def scalars(row: Row) -> dict[str, float]:
    """Numbers of a row by name, without the step."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _line(row: Row) -> str:
    return json.dumps(row, sort_keys=True) + "\n"
