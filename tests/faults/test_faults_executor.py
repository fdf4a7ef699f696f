"""kill -9 of the executor at every boundary and at random moments: a re-run completes with the same artifacts,
nothing is half published, no work is lost, and nothing of the dead run lives on. A suspended run just goes on."""

import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from suspensions import suspend
from warm_start import WarmProcess, start_warm

from m4v.core.artifacts import MANIFEST, verify
from m4v.core.storage import Storage
from pipelines.ledger import Ledger, Status
from pipelines.processes import descendants, identify, is_alive, send
from pipelines.store import ArtifactStore

SLOW = {"items": 10, "seconds_an_item": 0.04}
TIMEOUT_S = 1200
NUMBERS = itertools.count(1)


class Running(NamedTuple):
    """The small pipeline in a process of its own; what it says goes to the file `said`."""

    process: WarmProcess
    said: Path

    @property
    def pid(self) -> int:
        return self.process.pid


def start(home: Path, switches: Path, **options) -> Running:
    switches.mkdir(exist_ok=True)
    said = switches / f"said-{next(NUMBERS)}.txt"
    arguments = [str(home), str(switches), json.dumps(options)]
    return Running(start_warm("bench:from_command_line", arguments, stdout=said), said)


def finish(running: Running) -> dict[str, dict]:
    assert running.process.wait(TIMEOUT_S) == 0, running.said.read_text()
    return json.loads(running.said.read_text().splitlines()[-1])


def artifacts(outcomes: dict[str, dict]) -> dict[str, str]:
    return {node: out["artifact_id"] for node, o in outcomes.items() for out in o["outputs"].values()}


def work(switches: Path) -> Counter:
    path = switches / "work.log"
    return Counter(path.read_text().splitlines() if path.exists() else [])


def kill_group(running: Running) -> None:
    """The executor's process group; supervisors have sessions of their own and notice by themselves."""
    os.killpg(running.pid, signal.SIGKILL)
    running.process.wait()


def kill_tree(running: Running) -> None:
    """Everything at once, supervisors and stages too, as when a container is killed."""
    tree = [*([own] if (own := identify(running.pid)) else []), *descendants(running.pid)]
    for one in tree:
        send(one, signal.SIGKILL)
    running.process.wait()


def check_home(home: Path) -> None:
    """What must hold at any moment: whatever has a manifest verifies to the last byte, the chain is whole."""
    store = ArtifactStore(str(home / "store"))
    for record in store.list():
        verify(Storage(record.uri), record.artifact_id, deep=True)
    if (home / "ledger.db").exists():
        with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
            report = ledger.verify_chain()
            assert report.ok, report.problems
            for row in ledger.artifacts(limit=None):
                verify(Storage(row.uri), row.artifact_id, deep=True)


def check_finished(home: Path) -> None:
    """After a completed run: one run a key, no open attempt, no leftovers on disk or in the process table."""
    check_home(home)
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        runs = ledger.runs(limit=None)
        assert len({r.stage_key for r in runs}) == len(runs)
        assert ledger.attempts(status=Status.RUNNING) == []
    assert [p for p in (home / "store" / "state").glob("*/**/*") if p.is_file()] == []
    assert [p for p in (home / "store" / "artifacts").glob("*/*/*") if not (p / MANIFEST).exists()] == []
    mark = f"M4V_WORK_DIR={home}".encode()
    alive = [p for p in Path("/proc").glob("[0-9]*") if mark in _environment(p)]
    assert alive == []


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict[str, str], float]:
    """Artifacts of a run that nobody disturbed, and its seconds."""
    base = tmp_path_factory.mktemp("reference")
    began = time.monotonic()
    outcomes = finish(start(base / "home", base / "switches", count=SLOW))
    assert [o["status"] for o in outcomes.values()] == ["ran"] * 3
    return artifacts(outcomes), time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """Artifact of the first node alone, three items."""
    base = tmp_path_factory.mktemp("undisturbed")
    return artifacts(finish(start(base / "home", base / "switches", nodes=1, count={"items": 3})))


BOUNDARIES = [
    ("pipelines.ledger:Ledger.claim after 1", 0),
    ("pipelines.ledger:Ledger.begin_attempt after 1", 0),
    ("pipelines.launchers.local:LocalLauncher.submit after 1", 0),
    ("pipelines.store:ArtifactStore.publish before 1", 3),
    ("os:rename before 1", 3),
    ("os:rename after 1", 3),
    ("pipelines.store:ArtifactStore.publish after 1", 3),
    ("pipelines.ledger:Ledger.commit_run before 1", 3),
    ("pipelines.ledger:Ledger.commit_run after 1", 3),
    ("pipelines.attempt:AttemptRunner.forget after 1", 3),
    ("pipelines.ledger:Ledger.release before 1", 3),
    ("pipelines.ledger:Ledger.finish_pipeline_run before 1", 3),
]


# Right beside another boundary, where nothing lies between the two but a return.
BESIDE = (
    "os:rename before 1",
    "pipelines.store:ArtifactStore.publish after 1",
    "pipelines.ledger:Ledger.release before 1",
)


@pytest.mark.parametrize(
    ("place", "finished_items"),
    [pytest.param(*b, id=b[0], marks=[pytest.mark.deep] if b[0] in BESIDE else []) for b in BOUNDARIES],
)
def test_kill_at_a_boundary(tmp_path, undisturbed, place, finished_items):
    """`finished_items` were done when the kill came: they must never be done again."""
    home, switches = tmp_path / "home", tmp_path / "switches"
    killed = start(home, switches, nodes=1, count={"items": 3}, die_at=place, grace_s=0.0)
    assert killed.process.wait(TIMEOUT_S) == -signal.SIGKILL, killed.said.read_text()
    check_home(home)
    if finished_items:
        assert sum(work(switches).values()) == finished_items, "the kill came at another moment than meant"
    outcomes = finish(start(home, switches, nodes=1, count={"items": 3}))
    assert outcomes["count.a"]["status"] in ("ran", "hit")
    if finished_items:
        assert work(switches) == {f"a {i}": 1 for i in range(finished_items)}
    assert artifacts(outcomes) == undisturbed
    check_finished(home)


def killed_again_and_again(tmp_path: Path, uninterrupted: tuple[dict[str, str], float], kills: int, seed: int) -> None:
    expected, seconds = uninterrupted
    home, switches, rng = tmp_path / "home", tmp_path / "switches", random.Random(seed)
    for _ in range(kills):
        running = start(home, switches, count=SLOW, grace_s=0.3)
        time.sleep(rng.uniform(0.1, 0.8) * seconds)
        if running.process.poll() is None:
            (kill_group if rng.random() < 0.5 else kill_tree)(running)
        check_home(home)
    outcomes = finish(start(home, switches, count=SLOW))
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        keys = {a.stage_key for a in ledger.attempts(limit=None)}
    assert len(keys) == 3, "somebody edited the source tree while the test ran"
    assert artifacts(outcomes) == expected
    done = work(switches)
    assert set(done) == {f"{label} {i}" for label in "ab" for i in range(SLOW["items"])}, "an item was lost"
    # An item under work when the kill comes may be begun again; a saved one never is.
    assert sum(done.values()) - len(done) <= kills
    check_finished(home)


def test_kill_at_random_moments(tmp_path, uninterrupted):
    killed_again_and_again(tmp_path, uninterrupted, kills=4, seed=1)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(10, 30))
def test_kill_at_many_random_moments(tmp_path, uninterrupted, seed):
    killed_again_and_again(tmp_path, uninterrupted, kills=12, seed=seed)


def test_suspended_at_random_moments(tmp_path, uninterrupted):
    """Nothing is asked to drain, nothing is begun again: it takes longer, and that is all."""
    home, switches, rng = tmp_path / "home", tmp_path / "switches", random.Random(1)
    running = start(home, switches, count=SLOW)
    suspended = []
    while running.process.poll() is None:
        time.sleep(rng.uniform(0.05, 0.5))
        suspended.append(suspend(running.pid, rng.uniform(0.3, 0.8)))
    outcomes = finish(running)
    assert max(suspended) >= 3, "the executor, a supervisor and a stage were never stopped together"
    assert [o["status"] for o in outcomes.values()] == ["ran"] * 3
    assert artifacts(outcomes) == uninterrupted[0]
    assert set(work(switches).values()) == {1}
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        assert [a.exit_class for a in ledger.attempts(limit=None)] == [0] * 3
    check_finished(home)


def wait_for(condition, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_on_one_home_share_the_work(tmp_path, uninterrupted):
    expected, _ = uninterrupted
    home, switches = tmp_path / "home", tmp_path / "switches"
    both = [finish(p) for p in [start(home, switches, count=SLOW) for _ in range(2)]]
    assert [artifacts(o) for o in both] == [expected, expected]
    for node in expected:
        assert sorted(o[node]["status"] for o in both) == ["hit", "ran"]
    assert set(work(switches).values()) == {1}, "nothing was worked twice"
    check_finished(home)


def hold(switches: Path, item: int) -> None:
    """Let the first count wait before an item until `go_on`."""
    switches.mkdir(exist_ok=True)
    (switches / "hold.a").write_text(str(item))


def go_on(switches: Path) -> None:
    (switches / "hold.a").unlink()


def test_a_waiting_process_takes_over_from_a_killed_one(tmp_path):
    home, switches = tmp_path / "home", tmp_path / "switches"
    same = {"nodes": 1, "count": {"items": 6}}
    hold(switches, 3)
    first = start(home, switches, **same, grace_s=60.0)
    wait_for(lambda: len(work(switches)) == 3)
    stages = descendants(first.pid)
    assert stages
    second = start(home, switches, **same)
    wait_for(lambda: "waiting: stage is being run by" in second.said.read_text())
    kill_group(first)  # its stage, with a long grace, would go on draining
    go_on(switches)
    outcomes = finish(second)
    assert outcomes["count.a"]["status"] == "ran"
    assert not any(is_alive(p) for p in stages)
    done = work(switches)
    assert set(done) == {f"a {i}" for i in range(6)}
    assert sum(done.values()) <= 7
    check_finished(home)


def test_kill_9_of_the_supervisor_is_retried_from_the_saved_state(tmp_path):
    home, switches = tmp_path / "home", tmp_path / "switches"
    hold(switches, 3)
    running = start(home, switches, nodes=1, count={"items": 6})
    wait_for(lambda: len(work(switches)) == 3)
    supervisors = [p for p in descendants(running.pid) if b"pipelines.supervise" in _command(p.pid)]
    send(supervisors[0], signal.SIGKILL)
    go_on(switches)
    outcomes = finish(running)
    assert outcomes["count.a"]["status"] == "ran"
    done = work(switches)
    assert set(done) == {f"a {i}" for i in range(6)}
    assert sum(done.values()) <= 7
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        attempts = ledger.attempts(stage_key=outcomes["count.a"]["stage_key"])
    assert sorted(a.exit_class for a in attempts) == [0, 30]
    check_finished(home)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_ctrl_c_drains_and_a_second_one_cancels(tmp_path):
    home, switches = tmp_path / "home", tmp_path / "switches"
    running = start(home, switches, nodes=1, count={"items": 1000, "seconds_an_item": 0.05})
    wait_for(lambda: len(work(switches)) >= 3)
    running.process.send_signal(signal.SIGINT)
    outcomes = finish(running)
    assert outcomes["count.a"]["status"] == "drained"
    done = len(work(switches))
    assert done < 1000
    long = start(home, switches, nodes=1, count={"items": 1000, "seconds_an_item": 1.0})
    wait_for(lambda: len(work(switches)) > done or long.process.poll() is not None)
    long.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    long.process.send_signal(signal.SIGINT)
    assert long.process.wait(TIMEOUT_S) != 0
    mark = f"M4V_WORK_DIR={home}".encode()
    assert [p for p in Path("/proc").glob("[0-9]*") if mark in _environment(p)] == []
