"""The supervisor with real process trees: nothing it started outlives its parent, SIGTERM or its child."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.processes import (
    WORK_DIR_VARIABLE,
    Process,
    descendants,
    identify,
    is_alive,
    kill_leftovers,
    record_processes,
)
from pipelines.processes import send as send_signal

TREE = Path(__file__).parent.parent / "faults" / "process_trees.py"
PATIENCE_S = 600.0


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.02)


def supervise(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "pipelines.supervise", *arguments], **options)


def tree_processes(directory: Path, generations: int = 3) -> list[Process]:
    wait_until(lambda: len(list(directory.glob("*.pid"))) == generations)
    found = [identify(int(p.read_text())) for p in directory.glob("*.pid")]
    assert all(found)
    return [p for p in found if p is not None]


def all_gone(processes: list[Process]) -> Callable[[], bool]:
    return lambda: not any(is_alive(p) for p in processes)


def parent_running(*arguments: str) -> subprocess.Popen:
    """A parent process that starts the supervisor and waits: the one to be killed."""
    code = f"import subprocess, sys; subprocess.call([sys.executable, '-m', 'pipelines.supervise', *{arguments!r}])"
    return subprocess.Popen([sys.executable, "-c", code])


def test_exit_code_passes_through():
    assert supervise("--", sys.executable, "-c", "raise SystemExit(20)").wait(PATIENCE_S) == 20
    assert supervise("--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)").wait(PATIENCE_S) == 128 + 9


def test_usage_without_a_command():
    assert supervise("--grace", "1", stderr=subprocess.DEVNULL).wait(PATIENCE_S) == 2


def test_kill_9_of_the_parent_ends_stubborn_grandchildren_in_foreign_sessions(tmp_path):
    parent = parent_running("--grace", "0.5", "--", sys.executable, str(TREE), str(tmp_path))
    tree = tree_processes(tmp_path)
    assert len({os.getsid(p.pid) for p in tree}) == 3
    parent.kill()
    parent.wait()
    wait_until(all_gone(tree))


def test_kill_9_of_the_whole_process_group_ends_them_too(tmp_path):
    code = (
        "import subprocess, sys; subprocess.call([sys.executable, '-m', 'pipelines.supervise', '--grace', '0.5', '--',"
        f" sys.executable, {str(TREE)!r}, {str(tmp_path)!r}], start_new_session=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    tree = tree_processes(tmp_path)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(all_gone(tree))


def test_sigterm_gives_the_grace_then_kills(tmp_path):
    supervisor = supervise("--grace", "1.0", "--", sys.executable, str(TREE), str(tmp_path))
    tree = tree_processes(tmp_path)
    start = time.monotonic()
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 128 + signal.SIGKILL
    assert time.monotonic() - start > 0.9
    assert all_gone(tree)()


def test_a_drain_request_is_a_file_and_a_polite_command_ends_by_itself(tmp_path):
    drain = str(tmp_path / "drain")
    waits = f"import pathlib, time\nwhile not pathlib.Path({drain!r}).exists(): time.sleep(0.02)\nraise SystemExit(40)"
    supervisor = supervise("--grace", "150", "--work-dir", str(tmp_path), "--", sys.executable, "-c", waits)
    wait_until(lambda: (tmp_path / "pids.json").exists())
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 40


def test_a_suspension_asks_for_nothing(tmp_path):
    """Stopped for longer than a tick, then on, as a cluster that suspends jobs does it."""
    command = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)"
    end = tmp_path / "end"
    process = supervise("--work-dir", str(tmp_path), "--", sys.executable, "-c", command, str(end))
    wait_until(lambda: (tmp_path / "pids.json").exists())
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    end.touch()
    assert process.wait(PATIENCE_S) == 0
    assert not (tmp_path / "drain").exists()


def test_what_a_finished_command_leaves_behind_is_killed(tmp_path):
    code = textwrap.dedent(
        f"""
        import pathlib, subprocess, sys, time
        subprocess.Popen([sys.executable, {str(TREE)!r}, {str(tmp_path)!r}], start_new_session=True)
        while len(list(pathlib.Path({str(tmp_path)!r}).glob('*.pid'))) < 3: time.sleep(0.02)
        """
    )
    supervisor = supervise("--", sys.executable, "-c", code)
    tree = tree_processes(tmp_path)
    assert supervisor.wait(PATIENCE_S) == 0
    assert all_gone(tree)()


def test_kill_9_of_the_supervisor_takes_the_child_and_the_record_finds_the_rest(tmp_path):
    attempt, pids = tmp_path / "attempt-1", tmp_path / "pids"
    attempt.mkdir()
    pids.mkdir()
    supervisor = supervise("--work-dir", str(attempt), "--", sys.executable, str(TREE), str(pids))
    tree = tree_processes(pids)

    def recorded() -> set[int]:
        path = attempt / "pids.json"
        return {pid for pid, _ in json.loads(path.read_text())["processes"]} if path.exists() else set()

    wait_until(lambda: {p.pid for p in tree} | {supervisor.pid} <= recorded())
    supervisor.kill()
    supervisor.wait()
    child = next(p for p in tree if p.pid == int((pids / "0.pid").read_text()))
    wait_until(lambda: not is_alive(child))
    orphans = [p for p in tree if p != child]
    assert all(is_alive(p) for p in orphans), "orphans in foreign sessions outlive a killed supervisor"
    assert set(orphans) <= set(kill_leftovers(tmp_path))
    assert all_gone(orphans)()
    assert kill_leftovers(tmp_path) == []


def test_leftovers_are_found_by_environment_even_without_a_record(tmp_path):
    environment = os.environ | {WORK_DIR_VARIABLE: f"{tmp_path / 'attempt-1'}/"}
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env=environment)
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], env=os.environ | {WORK_DIR_VARIABLE: f"{tmp_path}-2/a/"}
    )
    try:
        wait_until(lambda: b"time" in Path(f"/proc/{ours.pid}/cmdline").read_bytes())
        assert [p.pid for p in kill_leftovers(tmp_path)] == [ours.pid]
        assert ours.wait(PATIENCE_S) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_reused_pid_is_not_touched(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        known = identify(stranger.pid)
        assert known is not None
        record_processes(tmp_path, [Process(known.pid, known.started - 1)])
        assert kill_leftovers(tmp_path) == []
        send_signal(Process(known.pid, known.started - 1), signal.SIGKILL)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_record_of_another_boot_is_not_believed(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        known = identify(stranger.pid)
        (tmp_path / "pids.json").write_text(json.dumps({"boot_id": "another", "processes": [known]}))
        assert kill_leftovers(tmp_path) == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_the_parent_may_be_a_thread_that_ends(tmp_path):
    """PDEATHSIG fires when the starting *thread* ends; the supervisor must only mind the process."""
    script = textwrap.dedent(
        """
        import subprocess, sys, threading, os, time
        started = []
        def start():
            started.append(subprocess.Popen([sys.executable, "-m", "pipelines.supervise", "--parent", str(os.getpid()),
                "--grace", "0", "--", sys.executable, "-c", "import time; time.sleep(1.5)"]))
        thread = threading.Thread(target=start); thread.start(); thread.join()
        raise SystemExit(started[0].wait())
        """
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S, check=False).returncode == 0


@pytest.mark.parametrize("generations", [3])
def test_descendants_sees_every_generation(tmp_path, generations):
    process = subprocess.Popen([sys.executable, str(TREE), str(tmp_path)])
    try:
        tree = tree_processes(tmp_path, generations)
        assert set(tree) <= {*descendants(os.getpid())}
    finally:
        for found in [*descendants(process.pid), *([own] if (own := identify(process.pid)) else [])]:
            send_signal(found, signal.SIGKILL)
        process.wait()


def test_a_fence_that_names_another_start_kills_the_command(tmp_path):
    """What still runs on a node that was given up must not write beside its successor."""
    fence, pids = tmp_path / "start", tmp_path / "nodes"
    fence.write_text("0")
    pids.mkdir()
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = supervise("--pids", str(pids), "--fence", f"{fence}=0", "--", *sleeper)
    wait_until(lambda: len(json.loads((pids / "pids.json").read_text())["processes"]) == 2
               if (pids / "pids.json").exists() else False)  # fmt: skip
    fence.unlink()  # a file system that is away for a moment says nothing
    time.sleep(2.5)
    assert process.poll() is None
    fence.write_text("1")
    assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
    assert (pids / "ended").read_text() == str(128 + signal.SIGKILL)


def test_stacks_are_asked_of_those_alone_who_can_answer(tmp_path):
    """SIGUSR1 would kill a process that has no handler for it: torchrun, or a tool that a stage started."""
    rank = textwrap.dedent("""
        import faulthandler, pathlib, signal, subprocess, sys, time
        folder = pathlib.Path(sys.argv[1])
        plain = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        faulthandler.register(signal.SIGUSR1, (folder / "stacks.0.txt").open("w"))
        (folder / "plain.pid").write_text(str(plain.pid))
        time.sleep(600)
    """)
    process = supervise("--work-dir", str(tmp_path), "--grace", "0", "--", sys.executable, "-c", rank, str(tmp_path))
    wait_until(lambda: (tmp_path / "plain.pid").exists() and (tmp_path / "plain.pid").read_text() != "")
    (tmp_path / "stacks").touch()
    wait_until(lambda: "most recent call first" in (tmp_path / "stacks.0.txt").read_text())
    assert identify(int((tmp_path / "plain.pid").read_text())) is not None
    assert process.poll() is None
    process.terminate()
    process.wait(PATIENCE_S)
