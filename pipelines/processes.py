"""Linux process control: parent-death signal, child subreaper, walks over /proc, and killing what an earlier
attempt left behind.

A process is named by (pid, start time), since pids are reused.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from m4v.core.local_files import write_atomic

PIDS = "pids.json"
WORK_DIR_VARIABLE = "M4V_WORK_DIR"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PROC = Path("/proc")


class Process(NamedTuple):
    """A process and its start time in clock ticks since boot."""

    pid: int
    started: int


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when the *thread* that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Orphans below this process become its children instead of init's, whatever session they are in."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if not _PROC.is_dir():
        return  # not Linux: the supervisor still kills its direct child
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def identify(pid: int) -> Process | None:
    """None when there is no such process, or only its zombie."""
    stat = _stat(pid)
    return None if stat is None or stat[2] == "Z" else Process(pid, stat[1])


def is_alive(process: Process) -> bool:
    return identify(process.pid) == process


def descendants(pid: int) -> list[Process]:
    """Every live process below `pid`, found by parent links, so that foreign sessions count."""
    children: dict[int, list[Process]] = {}
    for entry in _pids():
        stat = _stat(entry)
        if stat is not None and stat[2] != "Z":
            children.setdefault(stat[0], []).append(Process(entry, stat[1]))
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.extend(below)
        waiting.extend(p.pid for p in below)
    return found


def send(process: Process, number: int) -> None:
    """Signal a process unless it is gone and its pid somebody else's."""
    if is_alive(process):
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return


def catches(process: Process, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    try:
        status = (_PROC / str(process.pid) / "status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return is_alive(process) and bool(int(caught, 16) >> (number - 1) & 1)


def record_processes(directory: Path, processes: Iterable[Process]) -> None:
    """Write `pids.json`, from which a later attempt kills what this one leaves."""
    content = {"boot_id": boot_id(), "processes": sorted(processes)}
    write_atomic(directory / PIDS, json.dumps(content).encode())


def survivors(directory: Path) -> list[Process]:
    """Live processes of attempts at or below `directory`, known as `kill_leftovers` knows them."""
    return sorted(_leftovers(directory))


def kill_leftovers(directory: Path, timeout_s: float = 10.0) -> list[Process]:
    """SIGKILL every process of earlier attempts below `directory` and wait until they are gone.

    They are known from `pids.json` files of this boot, their descendants, and the environment variable
    M4V_WORK_DIR, which a process inherits even when it was started after the last record. Returns them.
    """
    killed: dict[Process, None] = {}
    deadline = time.monotonic() + timeout_s
    while found := _leftovers(directory):
        for process in found:
            killed[process] = None
            send(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return list(killed)


def _leftovers(directory: Path) -> set[Process]:
    found = set(_recorded(directory))
    for process in tuple(found):
        found.update(descendants(process.pid))
    found.update(_marked(directory))
    return {p for p in found if p.pid != os.getpid()}


def _recorded(directory: Path) -> Iterable[Process]:
    for path in directory.glob(f"**/{PIDS}"):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if content.get("boot_id") == boot_id():
            yield from (p for p in (Process(*pair) for pair in content["processes"]) if is_alive(p))


def _marked(directory: Path) -> Iterable[Process]:
    prefix = f"{WORK_DIR_VARIABLE}={directory}/".encode()
    for pid in _pids():
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            continue  # another user's process, or gone
        if any(entry.startswith(prefix) for entry in environment.split(b"\0")):
            process = identify(pid)
            if process is not None:
                yield process


def boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pids() -> Iterable[int]:
    return (int(p.name) for p in _PROC.iterdir() if p.name.isdigit()) if _PROC.is_dir() else ()


def _stat(pid: int) -> tuple[int, int, str] | None:
    """(parent pid, start time, state letter) of /proc/PID/stat; the command in brackets may hold anything."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19]), fields[0]
