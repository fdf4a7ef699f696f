"""Child processes of the driver, the GPUs they run on, and the files that come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from suites import Job

from pipelines.processes import Process, descendants, die_with_parent, is_alive, send

GRACE_S = 6.0
MOST_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One card: what CUDA_VISIBLE_DEVICES calls it, and its memory."""

    number: str
    gib: float


@dataclass
class Child:
    """A running job."""

    job: Job
    process: subprocess.Popen[bytes]
    gpus: tuple[Gpu, ...]
    began: float
    until: float
    seen: set[Process] = field(default_factory=set)


def gpus_here() -> list[Gpu]:
    """The cards that this process may use; empty without a driver."""
    words = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    found = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
    cards = {number.strip(): Gpu(number.strip(), float(mib) / 1024) for number, mib in found}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(cards.values()) if visible is None else [cards[n] for n in visible.split(",") if n in cards]


def end_with_driver() -> None:
    """For a child before it becomes another program."""
    die_with_parent(signal.SIGTERM)


def exit_of(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def kill(child: Child) -> None:
    """End a job and everything that it started, in whatever session: first asked, then killed."""
    leader = child.process.pid
    child.seen |= set(descendants(leader))

    def alive() -> list[Process]:
        child.seen |= {below for p in child.seen if is_alive(p) for below in descendants(p.pid)}
        return [p for p in child.seen if is_alive(p)]

    if child.process.poll() is None:
        child.process.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + GRACE_S
        while (child.process.poll() is None or alive()) and time.monotonic() < until:
            time.sleep(0.05)
            if number == signal.SIGKILL:
                for process in alive():
                    send(process, number)
                if child.process.poll() is None:
                    child.process.kill()


def write_archive(target: Path, work: Path) -> None:
    """Logs, results and further files of a work folder."""
    part = target.with_name(target.name + ".part")
    with tarfile.open(part, "w:gz", compresslevel=4) as archive:
        for log in sorted((work / "logs").iterdir()):
            _add_log(archive, log)
        archive.add(work / "results", "results")
        archive.add(work / "more", "more")
    part.replace(target)


def readable(path: Path) -> object | None:
    """A JSON file that may not be there, or not whole, yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _add_log(archive: tarfile.TarFile, log: Path) -> None:
    """The log, or its beginning and end where it is long."""
    held = log.read_bytes()
    if len(held) > MOST_LOG_BYTES:
        half = MOST_LOG_BYTES // 2
        held = held[:half] + f"\n... {len(held) - 2 * half} bytes left out ...\n".encode() + held[-half:]
    with tempfile.NamedTemporaryFile() as short:
        short.write(held)
        short.flush()
        archive.add(short.name, f"logs/{log.name}")


def write_text(path: Path, text: str) -> None:
    """All of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
