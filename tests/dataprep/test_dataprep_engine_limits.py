"""Work that hangs, spins or eats memory: the worker is killed, the stage goes on, the file is not tried for ever."""

import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataprep.curation.items import Job, measure_all
from dataprep.curation.poison import PoisonList
from dataprep.engine import Engine, open_engine
from dataprep.engines.limits import WorkLimits
from dataprep.quarantine import ItemError, ItemFailure, Reason
from m4v.core.stage import Resources

SPIN_S = 1.2  # of which a worker that replaces a killed one spends a quarter on its imports, on a slow core half


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine(Resources(workers=1), isolate=True) as opened:
        yield opened


@dataclass(frozen=True)
class Task:
    name: str
    marks: Path


def work(task: Task) -> bytes:
    """Leaves a mark for each try; `spin` never comes back from C, `grow` allocates without end."""
    (task.marks / f"{task.name}-{len(list(task.marks.glob(f'{task.name}-*')))}").touch()
    if task.name.startswith("spin"):
        compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda a, b: 0)
        while True:  # SIGTERM is not looked at inside C code, as in a decoder's bad loop
            ctypes.CDLL(None).qsort(ctypes.create_string_buffer(1 << 16), 1 << 16, 1, compare)
    if task.name.startswith("grow"):
        held = []
        while True:
            held.append(bytearray(16 << 20))
            time.sleep(0.01)
    if task.name.startswith("bad"):
        raise ItemError(Reason.DECODE_ERROR, "always")
    return task.name.encode()


def test_a_spinning_decoder_is_killed_by_processor_time(engine: Engine, tmp_path: Path) -> None:
    tasks = [Task(name, tmp_path) for name in ("a", "spin", "b")]
    results = list(engine.map(work, tasks, timeout_s=60, cpu_s=SPIN_S))
    assert results[0] == b"a"
    assert results[1] == ItemFailure(Reason.TIMEOUT, f"no answer within {SPIN_S:g} s of processor time")
    assert results[2] == b"b"


def test_a_worker_that_grows_is_killed(engine: Engine, tmp_path: Path) -> None:
    tasks = [Task(name, tmp_path) for name in ("a", "grow", "b")]
    results = list(engine.map(work, tasks, timeout_s=60, memory_bytes=600 << 20))
    assert (results[0], results[2]) == (b"a", b"b")
    assert results[1] == ItemFailure(Reason.OUT_OF_MEMORY, "more than 600 MiB")


def run(engine: Engine, tmp_path: Path, names: tuple[str, ...], cpu_s: float = SPIN_S, after: int = 2) -> list[object]:
    """Measure files named by their digest; the part after a dash tells jobs of one file apart."""
    jobs = []
    for name in names:
        digest = name.partition("-")[0].ljust(8, "0")
        jobs.append(Job(Task(name, tmp_path), digest, str(tmp_path / "items"), f"{digest}-{name}"))
    limits = WorkLimits(60, cpu_s, None)
    poison = PoisonList(str(tmp_path / "poison"), limits, after)
    return list(measure_all(engine, work, jobs, limits, poison))


def tries(tmp_path: Path, name: str) -> int:
    return len(list(tmp_path.glob(f"{name}-*")))


def test_a_file_that_hangs_is_not_tried_for_ever(engine: Engine, tmp_path: Path) -> None:
    for round_number, expected in enumerate((1, 2, 2, 2), start=1):
        first, hung, last = run(engine, tmp_path, ("ok1", "spin", "bad"))
        assert first == b"ok1"
        assert isinstance(hung, ItemFailure)
        assert hung.reason == Reason.TIMEOUT
        assert ("not tried again" in hung.detail) is (round_number > 2)
        assert last == ItemFailure(Reason.DECODE_ERROR, "always")
        assert tries(tmp_path, "spin") == expected
    assert tries(tmp_path, "bad") == 1  # a lasting failure is remembered as a result
    # Wider limits give it another chance.
    run(engine, tmp_path, ("spin",), cpu_s=2 * SPIN_S)
    assert tries(tmp_path, "spin") == 3


def test_other_jobs_of_a_hanging_file_are_not_started(engine: Engine, tmp_path: Path) -> None:
    names = ("spin-1", *(f"spin-{k}" for k in range(2, 8)), "ok")
    results = run(engine, tmp_path, names)
    assert [r.reason for r in results[:-1] if isinstance(r, ItemFailure)] == [Reason.TIMEOUT] * 7
    assert results[-1] == b"ok"
    assert sum(tries(tmp_path, name) for name in names[:-1]) <= 2  # one may have been under way
