"""Supervises a command so that nothing of it outlives its parent: `python -m pipelines.supervise -- CMD …`.

torchrun starts every rank in a session of its own, so killing a process group reaches none of them. This
process is a child subreaper: whatever is orphaned below it becomes its child, and a walk over /proc finds
it. When the parent dies or SIGTERM comes, the command is drained, waited for and then killed entirely.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from m4v.core.local_files import write_atomic
from pipelines.processes import (
    Process,
    become_subreaper,
    catches,
    descendants,
    die_with_parent,
    identify,
    record_processes,
    send,
)

GRACE_S = 60.0
CLEANUP_S = 2.0  # for what a finished command leaves running
KILL_S = 30.0  # a process that survives SIGKILL hangs in the kernel: nobody can wait for it
TICK_S = 0.2
RECORD_S = 1.0
FENCE_S = 2.0
ENDED = "ended"  # in the directory of a node: the exit code of its command
_ASK = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_CHILD = {signal.SIGCHLD}


class Supervisor:
    """One command and everything below it. `work_dir`, when given, takes `drain` and the request for `stacks`; `pids`
    (by default the same) takes `pids.json`. As soon as a file of `fences` says something else than its word, another
    start has the right to write and the command is killed."""

    def __init__(
        self,
        command: Sequence[str],
        grace_s: float,
        work_dir: Path | None,
        parent: int,
        pids: Path | None = None,
        fences: Mapping[Path, str] | None = None,
    ) -> None:
        self._command, self._grace_s, self._work_dir, self._parent = command, grace_s, work_dir, parent
        self._pids, self._fences = pids or work_dir, dict(fences or {})
        self._asked_stacks = False
        self._child = 0
        self._status: int | None = None
        self._recorded: set[Process] = set()
        self._record_at = self._fence_at = 0.0

    def run(self) -> int:
        """Returns the command's exit code, 128 + n when signal n ended it."""
        if os.getppid() != self._parent:
            return 128 + signal.SIGKILL  # the parent died before there was anything to drain
        become_subreaper()
        # Signals are blocked and looked at in one place: no handler can race with the loop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK | _CHILD)
        self._child = self._start(before)
        stop_at: float | None = None
        while True:
            # Its answer is not to be read: after a suspension (SIGSTOP, a frozen cgroup) CPython gives memory that
            # nobody wrote to as the signal. Those that ask for an end stay pending instead.
            signal.sigtimedwait(_CHILD, TICK_S)
            self._reap()
            if self._status is not None:
                break
            asked = bool(signal.sigpending() & _ASK)
            if stop_at is None and (asked or os.getppid() != self._parent):
                stop_at = time.monotonic() + self._grace_s
                self._drain()
            if stop_at is not None and time.monotonic() >= stop_at:
                break
            self._record()
            self._pass_on_stacks()
            if self._is_fenced_off():
                break
        if self._status is not None:
            self._end_all(signal.SIGTERM, CLEANUP_S)
        self._end_all(signal.SIGKILL, KILL_S)
        if self._pids is not None and self._pids != self._work_dir:
            write_atomic(self._pids / ENDED, str(self._exit_code()).encode())  # one node of several
        return self._exit_code()

    def _start(self, mask: set[signal.Signals] | set[int]) -> int:
        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            die_with_parent()
            if os.getppid() != supervisor:
                os._exit(1)

        supervisor = os.getpid()
        environment = os.environ | {"M4V_SUPERVISED": "1"}
        # preexec_fn is safe here: this process has one thread.
        child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, env=environment, preexec_fn=prepare)
        child.returncode = 0  # reaped below, not by Popen
        return child.pid

    def _drain(self) -> None:
        """Stages poll for the file; SIGTERM would take data loaders away from under a running step."""
        if self._work_dir is not None:
            write_atomic(self._work_dir / "drain", b"")
            return
        for process in descendants(os.getpid()):
            send(process, signal.SIGTERM)

    def _end_all(self, number: int, timeout_s: float) -> None:
        """Signal everything below until nothing is left or the time is up; forks in between are caught."""
        deadline = time.monotonic() + timeout_s
        signalled: set[Process] = set()
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            for process in set(left) - signalled:
                send(process, number)
            signalled.update(left)
            time.sleep(0.02)
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child:
                self._status = status

    def _record(self) -> None:
        now = time.monotonic()
        if self._pids is None or now < self._record_at:
            return
        self._record_at = now + RECORD_S
        own = identify(os.getpid())
        seen = {*descendants(os.getpid()), *([own] if own else [])}
        if seen != self._recorded:
            record_processes(self._pids, seen)
            self._recorded = seen

    def _pass_on_stacks(self) -> None:
        """SIGUSR1 to every process below that has a handler for it: the others would die of it."""
        if self._work_dir is None or (self._work_dir / "stacks").exists() == self._asked_stacks:
            return
        self._asked_stacks = not self._asked_stacks
        if self._asked_stacks:
            for process in descendants(os.getpid()):
                if catches(process, signal.SIGUSR1):
                    send(process, signal.SIGUSR1)

    def _is_fenced_off(self) -> bool:
        """A file that cannot be read says nothing: a file system may be away for a moment."""
        now = time.monotonic()
        if not self._fences or now < self._fence_at:
            return False
        self._fence_at = now + FENCE_S
        for path, word in self._fences.items():
            with contextlib.suppress(OSError):
                if path.read_text().strip() != word:
                    sys.stderr.write(f"supervise: {path.name} names another start: killing this one\n")
                    return True
        return False

    def _exit_code(self) -> int:
        status = self._status
        if status is None:
            return 128 + signal.SIGKILL
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(arguments: Sequence[str]) -> int:
    options, separator, command = _split(arguments)
    parser = argparse.ArgumentParser(prog="pipelines.supervise", description=__doc__.partition("\n")[0])
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds between drain and kill")
    parser.add_argument("--work-dir", type=Path, help="attempt directory for the drain request and pids.json")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="pid whose death ends the command")
    parser.add_argument("--pids", type=Path, help="directory for pids.json, if not the attempt's: one of each node")
    parser.add_argument("--fence", action="append", default=[], metavar="FILE=WORD", help="end once FILE differs")
    parsed = parser.parse_args(options)
    if not separator or not command:
        parser.error("give the command after --")
    fences = {Path(path): word for path, _, word in (fence.rpartition("=") for fence in parsed.fence)}
    return Supervisor(command, parsed.grace, parsed.work_dir, parsed.parent, parsed.pids, fences).run()


def _split(arguments: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    words = list(arguments)
    if "--" not in words:
        return words, False, []
    place = words.index("--")
    return words[:place], True, words[place + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
