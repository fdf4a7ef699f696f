"""Worker processes on this machine, started from a fork server, each with a pipe and killable at any time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection
from multiprocessing.connection import Connection, wait
from typing import Any

from dataprep.engines.calls import Function, Reply, call, prepare_worker
from dataprep.engines.limits import Usage, WorkLimits, usage_of
from dataprep.engines.schedule import Died

_PRELOAD = ("numpy", "cv2", "av", "pyarrow.parquet", "dataprep.engines.process")
_JOIN_S = 5.0


def _exit_with_parent() -> None:
    """End this worker when its parent is gone, even inside a decoder that never returns."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(connection: Connection, environment: dict[str, str]) -> None:
    # The fork server keeps the environment of its own start; ours may have changed since.
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C and a drain reach the whole group: the parent alone decides when workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    prepare_worker()
    function: Function | None = None
    while True:
        try:
            new_function, item = connection.recv()
        except EOFError:
            return
        function = new_function or function
        if function is None:
            raise RuntimeError("engine worker got an item before its function")
        connection.send(call(function, item))


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, dict(os.environ)), daemon=True)
        self.process.start()
        theirs.close()
        self.function: Function | None = None

    def describe_death(self) -> str:
        self.process.join(_JOIN_S)
        code = self.process.exitcode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


class ProcessPool:
    """`WorkerPool` of local processes; workers start on first use and stay."""

    enforces_limits = False

    def __init__(self, workers: int, preload: tuple[str, ...] = ()) -> None:
        self.slots = workers
        self._started = 0
        self._workers: dict[int, _Worker] = {}
        # Without effect once the server runs; it only saves each child the imports.
        multiprocessing.get_context("forkserver").set_forkserver_preload([*_PRELOAD, *preload])

    def scale(self, wanted: int) -> None:
        """A worker starts with its first item, so nothing has to be told."""

    def free_slot(self, busy: Collection[int]) -> int | None:
        return next((slot for slot in range(self.slots) if slot not in busy), None)

    def census(self) -> tuple[int, int]:
        return len(self._workers), self._started

    def submit(self, slot: int, function: Function, item: Any, limits: WorkLimits) -> None:
        worker = self._workers.get(slot)
        if worker is None:
            worker = self._workers[slot] = _Worker()
            self._started += 1
        new = function if worker.function is not function else None
        worker.function = function
        try:
            worker.connection.send((new, item))
        except (BrokenPipeError, ConnectionResetError):
            return  # it died while idle: `wait` reports that

    def wait(self, busy: Collection[int], timeout_s: float | None) -> list[tuple[int, Reply | Died]]:
        by_connection = {self._workers[slot].connection: slot for slot in busy}
        answers: list[tuple[int, Reply | Died]] = []
        for ready in wait(list(by_connection), timeout_s):
            slot = by_connection[ready]  # type: ignore[index]
            answers.append((slot, self._receive(self._workers[slot])))
        return answers

    @staticmethod
    def _receive(worker: _Worker) -> Reply | Died:
        try:
            reply: Reply = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            return Died(worker.describe_death())
        return reply

    def usage(self, slot: int) -> Usage | None:
        worker = self._workers.get(slot)
        return None if worker is None or worker.process.pid is None else usage_of(worker.process.pid)

    def kill(self, slot: int) -> None:
        worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.kill()

    def close(self) -> None:
        for slot in list(self._workers):
            self.kill(slot)
