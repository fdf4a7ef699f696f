"""Engines: order, equal results, deaths, time-outs, errors; in process, child processes and Ray alike."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from dataprep.engine import Engine, open_engine
from dataprep.quarantine import ItemError, ItemFailure, Reason
from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.stage import Resources


def numbers(item: int) -> tuple[int, bytes]:
    """Work of uneven length whose last bits depend on how a sum is split."""
    time.sleep(0.02 if item % 3 == 0 else 0)
    values = np.random.default_rng(item).standard_normal((64, 64), dtype=np.float32)
    return item, (values @ values).tobytes()


def odd_only(item: int) -> int:
    if item % 2 == 0:
        raise ItemError(Reason.TOO_SHORT, f"{item} is even")
    return item


def die_on_three(item: int, marks: Path, always: bool) -> int:
    if item == 3:
        attempts = len(list(marks.iterdir()))
        (marks / str(attempts)).touch()
        if always or attempts == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return item * 10


def hang_on_two(item: int) -> int:
    if item == 2:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return item


def divide(item: int) -> float:
    return 1 / item


def process_id(_: int) -> int:
    return os.getpid()


every_engine = pytest.mark.parametrize("engine", ["inline", "process", "ray"], indirect=True, scope="module")
with_children = pytest.mark.parametrize("engine", ["process", "ray"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    workers = 1 if request.param == "inline" else 2
    name = "process" if request.param == "inline" else request.param
    with open_engine(Resources(engine=name, workers=workers)) as opened:
        yield opened


@every_engine
def test_results_are_in_order_and_equal_in_every_engine(engine: Engine) -> None:
    assert list(engine.map(numbers, range(30))) == [numbers(i) for i in range(30)]


@every_engine
def test_item_error_becomes_a_failure_in_its_place(engine: Engine) -> None:
    results = list(engine.map(odd_only, range(4)))
    assert results == [ItemFailure("too_short", "0 is even"), 1, ItemFailure("too_short", "2 is even"), 3]


@every_engine
def test_a_bug_in_the_function_reaches_the_caller_with_its_traceback(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(engine.map(divide, [1, 0, 2]))
    assert "in divide" in "".join(caught.value.__notes__)
    assert list(engine.map(divide, [2])) == [0.5]


@every_engine
def test_nothing_in_nothing_out(engine: Engine) -> None:
    assert list(engine.map(divide, [])) == []


@with_children
def test_a_worker_killed_once_costs_nothing(engine: Engine, tmp_path: Path) -> None:
    results = list(engine.map(partial(die_on_three, marks=tmp_path, always=False), range(6)))
    assert results == [0, 10, 20, 30, 40, 50]
    assert len(list(tmp_path.iterdir())) == 2


@with_children
def test_a_worker_killed_twice_costs_its_item_only(engine: Engine, tmp_path: Path) -> None:
    results = list(engine.map(partial(die_on_three, marks=tmp_path, always=True), range(6)))
    assert results[:3] == [0, 10, 20]
    assert results[4:] == [40, 50]
    failure = results[3]
    assert isinstance(failure, ItemFailure)
    assert failure.reason == Reason.WORKER_DIED
    assert len(list(tmp_path.iterdir())) == 2


def end_host_once(item: int, marks: Path) -> int:
    """Item 1 ends the actor above its process, as a node's out-of-memory killer would."""
    if item == 1 and not list(marks.iterdir()):
        (marks / "ended").touch()
        psutil.Process().parent().parent().kill()  # type: ignore[union-attr]  # above the fork server
        time.sleep(600)
    return item


@pytest.mark.parametrize("engine", ["ray"], indirect=True, scope="module")
def test_an_actor_that_goes_is_replaced_and_its_item_goes_to_another(engine: Engine, tmp_path: Path) -> None:
    before = engine.meter.retried
    assert list(engine.map(partial(end_host_once, marks=tmp_path), range(4))) == [0, 1, 2, 3]
    assert engine.meter.retried == before + 1


@every_engine
def test_the_meter_counts_items_and_their_processor_time(engine: Engine) -> None:
    finished, cpu_s = engine.meter.finished, engine.meter.cpu_s
    results = engine.map(numbers, range(5))
    next(results)
    assert engine.meter.waiting is not None
    assert 0 <= engine.meter.waiting <= 4
    list(results)
    assert engine.meter.finished == finished + 5
    assert engine.meter.cpu_s > cpu_s
    assert (engine.meter.waiting, engine.meter.working) == (0, 0)


@with_children
def test_a_hanging_item_is_killed_and_the_rest_goes_on(engine: Engine) -> None:
    results = list(engine.map(hang_on_two, [1, 2, 3, 4], timeout_s=6.0))
    assert [r for r in results if not isinstance(r, ItemFailure)] == [1, 3, 4]
    assert results[1] == ItemFailure(Reason.TIMEOUT, "no answer within 6 s")


@with_children
def test_closing_early_leaves_the_engine_usable(engine: Engine) -> None:
    stream = engine.map(hang_on_two, [1, 2, 3])
    assert next(stream) == 1
    stream.close()  # type: ignore[attr-defined]
    assert list(engine.map(divide, [4])) == [0.25]


def test_isolate_gives_even_one_worker_its_own_process() -> None:
    before = {*multiprocessing.active_children()}
    with open_engine(Resources(workers=1), isolate=True) as isolated:
        assert list(isolated.map(process_id, [0])) != [os.getpid()]
    assert not {*multiprocessing.active_children()} - before


def test_a_ray_that_does_not_come_up_is_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # which the engine changes, and this restores
    gone = pytest.raises(InfrastructureError, match="Ray did not start: The current node timed out")
    with gone, open_engine(Resources(engine="ray", workers=1)) as engine:
        list(engine.map(divide, [1]))


def test_unknown_engine_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown engine: 'spark'"), open_engine(Resources(engine="spark")):
        pass
