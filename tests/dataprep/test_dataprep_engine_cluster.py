"""The Ray engine on a cluster of several nodes: nodes that go and come, full stores, models, memory, GPU shares."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from ray_cluster import STORE_BYTES, Nodes, cluster, stores

import dataprep.engines.ray as ray_engine
from dataprep.encode.jobs import text_encoder_of
from dataprep.engine import open_engine
from dataprep.quarantine import ItemFailure, Reason
from m4v.core.errors import InfrastructureError
from m4v.core.stage import Resources
from m4v.text.config import MiniLmConfig

pytestmark = pytest.mark.deep
MIB = 1 << 20
BIG = 4 * MIB
TWO_NODES = [2, 2]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster() as started:
        yield started


def on(nodes: Nodes, workers: int, **options: object) -> Resources:
    return Resources.model_validate(
        {"engine": "ray", "ray_address": nodes.address, "workers": workers, **options}
    )  # fmt: skip


def marked(item: int, marks: Path) -> int:
    """Leaves a file for each beginning of an item, and one for its end."""
    attempt = len(list(marks.glob(f"{item}.begun.*")))
    (marks / f"{item}.begun.{attempt}").touch()
    time.sleep(0.25)
    (marks / f"{item}.done").touch()
    return item * 10


def test_a_node_killed_in_the_middle_costs_only_what_was_in_flight(nodes: Nodes, tmp_path: Path) -> None:
    nodes.hold(TWO_NODES)
    with open_engine(on(nodes, 4)) as engine:
        results = engine.map(partial(marked, marks=tmp_path), range(60))
        first = [next(results) for _ in range(12)]
        assert engine.meter.workers >= 3, "work is spread over both nodes"
        begun, done = len(list(tmp_path.glob("*.begun.*"))), len(list(tmp_path.glob("*.done")))
        nodes.kill(nodes.workers[0])
        assert [*first, *results] == [i * 10 for i in range(60)], "none lost, none twice, in order"
        meter = engine.meter
    attempts = Counter(path.name.partition(".")[0] for path in tmp_path.glob("*.begun.*"))
    assert set(attempts) == {str(i) for i in range(60)}
    again = {item for item, times in attempts.items() if times > 1}
    assert begun - done <= 4
    assert 1 <= len(again) <= 2, "two workers were on the node"
    assert sum(attempts.values()) - 60 == len(again) <= meter.retried <= 2
    assert meter.finished == 60


def big(item: int) -> bytes:
    return bytes([item % 256]) * BIG


def test_what_goes_through_the_stores_neither_fills_nor_spills_them(nodes: Nodes) -> None:
    """Five times the stores' size goes through them while the consumer is slow: replies are fetched only as fast as
    they are consumed, and nothing is spilled. (Ray frees what was fetched some time later: the peak shows it.)"""
    nodes.hold(TWO_NODES)
    peak, spilled, stop = 0, 0, threading.Event()

    def sample() -> None:
        nonlocal peak, spilled
        while not stop.wait(0.1):
            used, spilled = stores(nodes.address)
            peak = max(peak, used)

    count = 5 * 3 * STORE_BYTES // BIG
    with open_engine(on(nodes, 4)) as engine:
        watcher = threading.Thread(target=sample)
        results = engine.map(big, range(count))
        assert next(results) == big(0)
        watcher.start()
        for number, reply in enumerate(results, start=1):
            assert reply == big(number)
            time.sleep(0.2 if number % 25 == 0 else 0)
        stop.set()
        watcher.join()
    print(f"{count * BIG / MIB:.0f} MiB; peak {peak / MIB:.1f} of {3 * STORE_BYTES / MIB:.0f} MiB in three stores")
    assert 0 < peak < 3 * STORE_BYTES
    assert spilled == 0


def text_models_opened(item: int) -> tuple[int, int]:
    """This process, and how often it has opened the text encoder."""
    text_encoder_of(MiniLmConfig(slots=8)).encode((f"clip {item}",))
    return os.getpid(), text_encoder_of.cache_info().misses


def test_models_are_loaded_once_a_worker(nodes: Nodes) -> None:
    nodes.hold(TWO_NODES)
    with open_engine(on(nodes, 2)) as engine:
        answers = [a for a in engine.map(text_models_opened, range(40)) if not isinstance(a, ItemFailure)]
        answers += [a for a in engine.map(text_models_opened, range(10)) if not isinstance(a, ItemFailure)]
    assert len(answers) == 50
    assert {opened for _, opened in answers} == {1}
    assert len({process for process, _ in answers}) == 2


def visible_gpus(_: int) -> tuple[int, str]:
    time.sleep(0.2)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_workers_take_their_share_of_a_gpu(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.hold(TWO_NODES)
    on_gpu = on(nodes, 4, device="cuda", gpus_per_worker=0.5)
    monkeypatch.setattr(ray_engine, "START_S", 5.0)
    none = pytest.raises(
        InfrastructureError, match=r"no worker came up on Ray within 5 s; each needs 1 CPU and 0\.5 GPU"
    )
    with open_engine(on_gpu, on_device=True) as engine, none:
        list(engine.map(visible_gpus, range(2)))
    monkeypatch.setattr(ray_engine, "START_S", 120.0)
    node = nodes.add(cpus=4, gpus=1)
    try:
        with open_engine(on_gpu, on_device=True) as engine:
            answers = list(engine.map(visible_gpus, range(20)))
            assert engine.meter.workers == 2, "two halves of one GPU, though four workers were asked for"
        assert {device for _, device in answers} == {"0"}
        assert len({process for process, _ in answers}) == 2
        with open_engine(on_gpu) as engine:  # work that does not use the device takes no GPU
            assert len({process for process, _ in engine.map(visible_gpus, range(20))}) >= 3
    finally:
        nodes.kill(node)


def last_is_slow(item: int) -> int:
    time.sleep(6 if item < 0 else 0.2)
    return item


def test_the_pool_grows_with_the_cluster_and_shrinks_with_the_work(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.hold([1])
    monkeypatch.setattr(ray_engine, "IDLE_S", 0.5)
    with open_engine(on(nodes, 3)) as engine:

        def until_grown() -> Iterator[int]:
            number = 0
            while engine.meter.workers < 3 and number < 1000:
                yield number
                number += 1
            yield -1

        seen = []
        for item in engine.map(last_is_slow, until_grown()):
            seen.append(engine.meter.workers)
            if item == 4:
                nodes.add(2)
        assert seen[:5] == [1] * 5, "the cluster had room for one"
        assert engine.meter.workers_started == 3
        assert item == -1
        assert engine.meter.workers < 3, "while the last item was at work, idle ones went"


def grow(item: int) -> int:
    held = []
    while item == 1:
        held.append(bytearray(16 * MIB))
        time.sleep(0.01)
    return item


def test_memory_is_bounded_on_every_node(nodes: Nodes) -> None:
    nodes.hold(TWO_NODES)
    with open_engine(on(nodes, 2)) as engine:
        results = list(engine.map(grow, range(4), memory_bytes=500 * MIB))
        assert results == [0, ItemFailure(Reason.OUT_OF_MEMORY, "more than 500 MiB"), 2, 3]
        assert engine.meter.retried == 0


def end_host(item: int, marks: Path, always: bool) -> int:
    """Ends the actor above this child, as the node's out-of-memory killer would."""
    if item == 1 and (always or not list(marks.iterdir())):
        (marks / str(len(list(marks.iterdir())))).touch()
        psutil.Process().parent().parent().kill()  # type: ignore[union-attr]  # above the fork server
        time.sleep(30)
    return item


@pytest.mark.parametrize("always", [False, True])
def test_an_actor_that_goes_is_replaced(nodes: Nodes, tmp_path: Path, always: bool) -> None:
    nodes.hold(TWO_NODES)
    with open_engine(on(nodes, 2)) as engine:
        results = list(engine.map(partial(end_host, marks=tmp_path, always=always), range(6)))
        assert [*results[:1], *results[2:]] == [0, 2, 3, 4, 5]
        assert engine.meter.retried == (4 if always else 1)
    if always:
        assert isinstance(results[1], ItemFailure)
        assert results[1].reason == Reason.WORKER_DIED
        assert results[1].detail.startswith("lost 5 times: Actor")
    else:
        assert results[1] == 1


_DRIVER = """
import sys
from functools import partial
from pathlib import Path
from test_dataprep_engine_cluster import marked
from dataprep.engine import open_engine
from m4v.core.stage import Resources
if __name__ == "__main__":
    marks = Path(sys.argv[2])
    left = [i for i in range(40) if not (marks / f"{i}.done").exists()]
    with open_engine(Resources(engine="ray", ray_address=sys.argv[1], workers=4)) as engine:
        print(sum(1 for _ in engine.map(partial(marked, marks=marks), left)))
"""


def test_kill_of_the_driver_costs_an_item_a_worker(nodes: Nodes, tmp_path: Path) -> None:
    nodes.hold(TWO_NODES)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", _DRIVER, nodes.address, str(tmp_path)]
    driver = subprocess.Popen(command, env=environment)
    while len(list(tmp_path.glob("*.done"))) < 8:
        assert driver.poll() is None
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(5)  # the cluster ends the actors of a driver that is gone
    done, begun = len(list(tmp_path.glob("*.done"))), len(list(tmp_path.glob("*.begun.*")))
    assert begun - done <= 4, "one in flight a worker"
    time.sleep(1)
    assert len(list(tmp_path.glob("*.begun.*"))) == begun, "nothing goes on without the driver"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(again.stdout) == 40 - done
    assert len(list(tmp_path.glob("*.begun.*"))) == 40 + begun - done


def test_another_version_on_a_node_is_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.hold(TWO_NODES)
    ours = ray_engine.fingerprint()
    monkeypatch.setattr(ray_engine, "fingerprint", lambda: {**ours, "av": "0.1"})
    with open_engine(on(nodes, 1)) as engine, pytest.raises(InfrastructureError, match=r"another av \(.* \(0.1\)"):
        list(engine.map(last_is_slow, range(1)))
