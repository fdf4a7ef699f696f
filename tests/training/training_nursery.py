"""Gangs of ranks forked from one process that has imported torch, DeepSpeed and the trainer, for tests.

A gang of torchrun's imports all that once for the agent and once for each rank, ten times what its few steps take.
Here the ranks are processes of their own all the same, with their own memory, groups and deaths: an agent serves the
store they meet at, and when one fails it ends the others as torchrun does. None outlives what started it: the kernel
ends ranks with their agent, an agent with its nursery, and a nursery with the process of the tests.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.processes import die_with_parent

REPOSITORY = Path(__file__).parents[2]
GRACE_S = 30.0
# The last is wanted by activation checkpointing, and takes longer to import than torch itself.
SHARED = ("pipelines.stage_process", "training.stages.train", "m4v.model", "pyarrow.dataset", "torch._dynamo")


@dataclass
class Gang:
    """A running gang: its agent's process id, and its exit code once it is over."""

    pid: int
    _replies: IO[str]
    _code: int | None = None

    def wait(self) -> int:
        """0 when all ranks left with 0; waits for all of them (pytest's timeout watches over it)."""
        if self._code is None:
            self._code = int(self._replies.readline())
        return self._code


@dataclass
class Nursery:
    """Starts gangs, one after the other: wait for one before the next."""

    process: subprocess.Popen[str]

    def start(
        self,
        ranks: int,
        arguments: list[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        imports: Sequence[str] = (),
    ) -> Gang:
        """Run a script (`arguments[0]`) as `__main__` on every rank; what the ranks print goes to `log`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {
            "imports": [*imports], "ranks": ranks, "arguments": arguments, "log": str(log),
            "environment": {**(environment or {})},
        }  # fmt: skip
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Gang(int(self.process.stdout.readline()), self.process.stdout)

    def run(self, ranks: int, arguments: list[str], log: Path, imports: Sequence[str] = ()) -> None:
        """Start a gang, wait for it and fail with what it printed unless all went well. `imports`: modules that are
        imported once, before the ranks are forked."""
        code = self.start(ranks, arguments, log, imports=imports).wait()
        assert code == 0, log.read_text()[-3000:]


@contextmanager
def nursery_of_ranks(shared: Sequence[str] = SHARED) -> Iterator[Nursery]:
    """The process that gangs are forked from, which has imported `shared`. It ends when the block does, or when this
    process dies, and so does a gang that is still at work."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, __file__, str(os.getpid()), *shared]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


def serve(orders: IO[str], replies: IO[str]) -> None:
    """Fork an agent for every order; reply with its process id, and with its exit code when it has ended."""
    for line in orders:
        order = json.loads(line)
        for module in order.pop("imports"):
            importlib.import_module(module)
        nursery = os.getpid()
        if (agent := os.fork()) == 0:
            end_with(nursery)
            leave_with(lead(**order))
        replies.write(f"{agent}\n")
        replies.flush()
        replies.write(f"{os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1])}\n")
        replies.flush()


def lead(ranks: int, arguments: list[str], log: str, environment: dict[str, str]) -> int:
    """Be the agent of a gang; the exit code of the first rank that failed, or 0."""
    from torch import distributed

    os.environ.update(environment)
    waiting, agent = {}, os.getpid()
    for rank in range(ranks):
        receive, send = os.pipe()
        if (child := os.fork()) == 0:
            end_with(agent)
            leave_with(be_rank(rank, ranks, receive, arguments, log))
        os.close(receive)
        waiting[child] = send
    stores: Any = distributed  # exported at run time only
    store = stores.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for send in waiting.values():
        os.write(send, f"{store.port}".encode())
        os.close(send)
    return watch({*waiting})


def watch(alive: set[int]) -> int:
    """Wait for all; when one fails, ask the others to end and kill those that do not."""
    failed, kill_at = 0, float("inf")
    while alive:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            time.sleep(0.02)
        alive.discard(child)
        if child and status and not failed:
            failed, kill_at = os.waitstatus_to_exitcode(status), time.monotonic() + GRACE_S
            signal_all(alive, signal.SIGTERM)
        if time.monotonic() > kill_at:
            signal_all(alive, signal.SIGKILL)
    return min(abs(failed), 255)


def signal_all(processes: set[int], number: int) -> None:
    for process in processes:
        os.kill(process, number)


def be_rank(rank: int, ranks: int, receive: int, arguments: list[str], log: str) -> int:
    """Be one rank, with the environment torchrun would give it."""
    port = os.read(receive, 16).decode()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except BaseException:  # its parent reads the code, a person the log
        traceback.print_exc()
        return 1
    return 0


def end_with(parent: int) -> None:
    """Be killed when the parent ends, also when it has ended already."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def leave_with(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    if "training.stages.train" in sys.argv:
        importlib.import_module("training.startup").deepspeed_module()
    gc.freeze()  # or looking for garbage would copy all of it in every rank
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, replies)
