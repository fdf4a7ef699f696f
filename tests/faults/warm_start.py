"""Starts commands as forks of one process that has imported them: real processes with sessions, signals and exit codes
of their own, without the second of imports that each would begin with. `python warm_start.py MODULE…` is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
MODULES = ("bench", "pipelines.cli.run", "pipelines.cli.main", "alembic.command", "sqlalchemy.dialects.sqlite")
POLL_S = 0.01


class WarmProcess:
    """What `subprocess.Popen` is of a process of ours, as far as the tests need it; leads a session of its own."""

    def __init__(self, pid: int, ended: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """The exit code, less than 0 where a signal ended it; None while it runs."""
        if self.returncode is None and self._ended.exists():
            self.returncode = int(self._ended.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout if timeout is not None else None
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Template:
    """The process that is forked; one for each process that runs tests, started when first needed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="m4v-warm-")
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__, *MODULES], env={**os.environ, "PYTHONPATH": path}, cwd=REPOSITORY,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip
        self._count = 0
        atexit.register(self.close)

    def start(self, request: dict[str, Any]) -> WarmProcess:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        ended = Path(self._folder.name) / str(self._count)
        self._process.stdin.write(json.dumps({**request, "ended": str(ended)}) + "\n")
        return WarmProcess(int(self._process.stdout.readline()), ended)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


_TEMPLATES: list[_Template] = []


def start_warm(
    entry: str, arguments: Sequence[str], *, stdout: Path, stderr: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> WarmProcess:  # fmt: skip
    """Call `module:function` without arguments in a new process whose command line has `arguments`.

    It has this process's environment with `environment` on top; both streams go to `stdout` unless `stderr` is given.
    """
    for stream in {stdout, stderr or stdout}:
        stream.touch()  # whoever waits for a word may read at once
    if not _TEMPLATES:
        _TEMPLATES.append(_Template())
    return _TEMPLATES[0].start(
        {
            "entry": entry, "arguments": list(arguments), "cwd": str(Path.cwd()), "stdout": str(stdout),
            "stderr": str(stderr or stdout), "environment": {**os.environ, **(environment or {})},
        }
    )  # fmt: skip


def serve(modules: Sequence[str]) -> dict[str, Any] | None:
    """Fork for every request on stdin and tell the exit code of every child. In a child: its request; None at the end
    of the requests."""
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    children: dict[int, str] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    with open(0, "rb", buffering=0, closefd=False) as requests:
        while True:
            ready = select.select([requests, woken], [], [])[0]
            if woken in ready:
                os.read(woken, 64)
                _reap(children)
            if requests in ready:
                line = requests.readline()
                if not line:
                    return None
                request: dict[str, Any] = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    os.close(woken)
                    os.close(wake)
                    return request
                children[pid] = request["ended"]
                os.write(1, f"{pid}\n".encode())


def _reap(children: dict[int, str]) -> None:
    for pid, ended in list(children.items()):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            del children[pid]
            partial = Path(f"{ended}.partial")
            partial.write_text(str(os.waitstatus_to_exitcode(status)))
            partial.rename(ended)


def become(request: dict[str, Any]) -> None:
    """Turn a fork into the process that was asked for, and do its work."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A test run started in the background hands down an ignored SIGINT; a person at a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.callbacks.clear()  # hypothesis leaves one, and a KeyboardInterrupt that meets it is lost
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    streams = [os.open(os.devnull, os.O_RDONLY), os.open(request["stdout"], flags)]
    streams.append(streams[1] if request["stderr"] == request["stdout"] else os.open(request["stderr"], flags))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in set(streams):
        os.close(stream)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - of this process, to its end
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = [request["entry"], *request["arguments"]]
    module, _, function = request["entry"].partition(":")
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    wanted = serve(sys.argv[1:])
    if wanted is not None:
        become(wanted)
