"""Clocks of the speed benchmarks: medians, CUDA graphs, peak memory, and cases that may fail or run out of time."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from m4v.kernels import kernel_set
from m4v.kernels.selection import CONVOLUTION, MAMBA, TRITON, version_of

REPEATS, WARM = 20, 3
MIB, GIB = 1 << 20, 1 << 30
FLUSH_BYTES = 256 * MIB  # more than the second-level cache holds
LEAST_CASE_S = 8.0  # a case with less time than this is not begun
COMMIT = "M4V_BENCH_COMMIT"  # where the benchmark runs outside a clone
Row = dict[str, Any]


class Unavailable(Exception):
    """What a case needs is not there; the message says what."""


class OutOfTime(Exception):
    """The case's time has ended."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(call: Callable[[], object], device: torch.device, repeats: int = REPEATS, warm: int = WARM) -> float:
    """Median milliseconds of a call, with cold second-level cache: on a GPU between events, so that a host that is too
    slow to keep it busy counts too."""
    for _ in range(warm):
        call()
    if device.type != "cuda":
        return statistics.median(_host_ms(call) for _ in range(repeats))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in marks:
        flush.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return float(statistics.median(begin.elapsed_time(end) for begin, end in marks))


def _host_ms(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def graphed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as a CUDA graph, to be replayed. Raises Unavailable elsewhere, and what capturing raises."""
    if device.type != "cuda":
        raise Unavailable("CUDA graphs need a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(kept: object = kept) -> None:  # the graph's results live as long as it does
        graph.replay()

    return replay


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """What a call needs at most beyond what is allocated before it; 0 without a GPU."""
    if device.type != "cuda":
        call()
        return 0.0
    clear(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def facts(device: torch.device) -> Row:
    """What the figures were taken on."""
    found: Row = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "python": sys.version.split()[0], "commit": commit(),
        "kernels": kernel_set(device.type), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    for name in (TRITON, MAMBA, CONVOLUTION):
        found[name] = version_of(name)
    return found


def commit() -> str:
    if named := os.environ.get(COMMIT):
        return named
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


@dataclass
class Bench:
    """Rows of one benchmark; written out after each, so that a killed run leaves what it found."""

    name: str
    device: torch.device
    until: float
    repeats: int = REPEATS
    out: Path | None = None
    rows: list[Row] = field(default_factory=list)
    extra: Row = field(default_factory=dict)  # further results, by name
    about: Row = field(default_factory=dict)
    found: Row = field(default_factory=dict)  # by the case that runs: kept even if its next part fails
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.until - time.monotonic()

    def case(self, row: Row, measure: Callable[[], Row], most_s: float = 150.0) -> Row:
        """Add what `measure` finds to a row, what it has put into `found` even if it fails. A case that fails, cannot
        be, or takes longer than `most_s` says so in `state`, and the next one has its turn."""
        given = min(most_s, self.left())
        self.found = {}
        if given < LEAST_CASE_S:
            row["state"] = "no time left"
        else:
            try:
                with alarm(given):
                    found = measure()
                row |= self.found | found
                row.setdefault("state", "measured")
            except Exception as error:  # the next case may go well
                row |= self.found | {"state": _state_of(error, given, self.found)}
            clear(self.device)
        self.rows.append(row)
        shown = ", ".join(f"{key} {said(value)}" for key, value in row.items() if not isinstance(value, dict | list))
        print(f"[{time.monotonic() - self.began:.0f} s] {shown}", flush=True)
        self.write()
        return row

    def write(self) -> None:
        if self.out is None:
            return
        self.about = self.about or facts(self.device)
        held = {"benchmark": self.name, "facts": self.about, "rows": self.rows, **self.extra}
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(held, indent=1))
        part.replace(self.out)

    def table(self, columns: Sequence[str]) -> None:
        """The rows, as a table; what they say of themselves where there are no figures."""
        print_table(columns, [[said(row.get(column, "")) for column in columns] for row in self.rows])


def _state_of(error: Exception, given: float, found: Row) -> str:
    """What stopped a case of `given` seconds, and behind which of its figures."""
    behind = f", behind {list(found)[-1]}" if found else ""
    if isinstance(error, Unavailable):
        return f"not available: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory{behind}"
    if isinstance(error, OutOfTime):
        return f"stopped after {given:.0f} s{behind}"
    traceback.print_exception(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first[:160]}{behind}"


def said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """OutOfTime inside the block once so many seconds have passed; compilers that hang are Python, too."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def options_of(about: str | None, limit_s: float) -> argparse.ArgumentParser:
    """The options that all speed benchmarks share."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=limit_s, help="no case begins once the time is over")
    parser.add_argument("--out", type=Path, help="JSON of the rows, written after each")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU with plain kernels")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    return parser


def bench_of(name: str, options: argparse.Namespace) -> Bench:
    """Raises SystemExit where there is no GPU and no rehearsal is asked for."""
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --tiny rehearses on the CPU")
    device = torch.device("cpu" if options.tiny else "cuda")
    if options.tiny:
        torch.set_num_threads(1)
    repeats = 2 if options.tiny else options.repeats
    return Bench(name, device, time.monotonic() + options.limit_s, repeats, options.out)
