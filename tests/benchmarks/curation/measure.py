"""CPU seconds, wall seconds and peak memory of a command with all its processes, also of one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

POLL_S = 0.2


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    wall_s: float
    peak_bytes: int  # proportional set size of all processes together


@dataclass(frozen=True)
class Killed:
    """CPU seconds of the killed run and the one after it, and what became of the samples."""

    cpu_s: float
    lost: int = 0
    twice: int = 0

    def with_samples(self, lost: int, twice: int) -> Killed:
        return replace(self, lost=lost, twice=twice)


def run(command: Sequence[str], environment: Mapping[str, str], out: Path) -> Cost:
    """Run to the end; ends this program when the command fails."""
    started = time.monotonic()
    process = _start(command, environment, out)
    watch = _Watch(process)
    while not watch.ended():
        time.sleep(POLL_S)
    if process.returncode != 0:
        said = out.with_suffix(".log").read_text(errors="replace")[-2000:]
        sys.exit(f"a side ended with {process.returncode}: {process.args!r}\n{said}")
    return Cost(watch.cpu_s, time.monotonic() - started, watch.peak_bytes)


def run_killed(command: Sequence[str], environment: Mapping[str, str], out: Path, after_s: float) -> Killed:
    """Kill the process group `after_s` seconds after its start, then run the same command to its end."""
    deadline = time.monotonic() + after_s
    process = _start(command, environment, out)
    watch = _Watch(process)
    while time.monotonic() < deadline and process.poll() is None:
        watch.look()
        time.sleep(POLL_S)
    watch.look()
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGKILL)
    process.wait()
    return Killed(watch.cpu_s + run(command, environment, out).cpu_s)


def _start(command: Sequence[str], environment: Mapping[str, str], out: Path) -> subprocess.Popen[bytes]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


class _Watch:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.peak_bytes, self.cpu_s = process, 0, 0.0

    def look(self) -> None:
        """CPU of the tree so far: of live processes, and of ended ones that their parents have waited for."""
        cpu_s, memory = 0.0, 0
        try:
            root = psutil.Process(self._process.pid)
            for one in [root, *root.children(recursive=True)]:
                try:
                    times = one.cpu_times()
                    cpu_s += times.user + times.system + times.children_user + times.children_system
                    memory += one.memory_full_info().pss
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        self.cpu_s, self.peak_bytes = max(self.cpu_s, cpu_s), max(self.peak_bytes, memory)

    def ended(self) -> bool:
        """True once the command has ended; its CPU time is then exact, as the kernel counted it."""
        self.look()
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return True
