"""Stages of several ranks under torchrun: their class, their retry, and that no rank outlives its supervisor."""

import os
import signal
import threading
from pathlib import Path

from bench import wait_for, work_log
from stages_for_faults import GANG, CountConfig

from m4v.core.errors import ExitClass
from m4v.core.stage import Resources
from m4v.core.storage import Storage
from pipelines.processes import descendants, send
from pipelines.spec import StageNode


def test_a_gang_of_two_ranks_under_torchrun(bench, switches):
    node = StageNode("gang", GANG, CountConfig(), resources=Resources(ranks=2, threads=1, workers=1))
    outcome = bench.run([node])["gang"]
    assert outcome.error is None
    assert Storage(outcome.outputs["lines"].uri).read_bytes("rank1.txt") == b"1 of 2\n"
    assert bench.ledger.run(outcome.run_id).environment["numerics"]["world_size"] == 2


def test_the_class_of_a_gang_is_that_of_its_bad_rank(bench, switches):
    (switches / "integrity").write_text("")
    locations = {"switches": str(switches), "bad_rank": "1"}
    resources = Resources(ranks=2, threads=1, workers=1)
    outcome = bench.run([StageNode("gang", GANG, CountConfig(), resources=resources, locations=locations)])["gang"]
    assert outcome.exit_class == ExitClass.DATA_INTEGRITY
    assert "bytes are wrong" in outcome.error


def test_a_killed_rank_is_infrastructure(bench, switches):
    (switches / "SIGKILL").write_text("1")
    locations = {"switches": str(switches), "bad_rank": "1"}
    resources = Resources(ranks=2, threads=1, workers=1)
    nodes = [StageNode("gang", GANG, CountConfig(), resources=resources, locations=locations)]
    outcome = bench.run(nodes)["gang"]
    assert outcome.status == "ran"
    assert sorted(a.exit_class for a in bench.ledger.attempts(stage_key=outcome.stage_key)) == [0, 30]


def test_a_gang_drains_and_kill_9_of_its_supervisor_ends_every_rank(bench, switches):
    """torchrun starts each rank in a session of its own: no process group reaches them."""
    node = StageNode(
        "gang",
        GANG,
        CountConfig(items=600, seconds_an_item=0.1),
        resources=Resources(ranks=2, threads=1, workers=1),
        locations={"switches": str(switches)},
    )

    def ranks() -> set[int]:
        return {int(line.split()[2]) for line in work_log(switches)}

    def interfere() -> None:
        wait_for(lambda: len(ranks()) == 2)
        first = ranks()
        sessions = {os.getsid(pid) for pid in first}
        assert len(sessions) == 2
        (supervisor,) = [p for p in descendants(os.getpid()) if b"pipelines.supervise" in command_of(p.pid)]
        send(supervisor, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first))
        wait_for(lambda: len(ranks()) == 4)  # the retry
        run.drain()

    run = bench.new_run([node])
    thread = threading.Thread(target=interfere)
    thread.start()
    outcome = run.run_all()["gang"]
    thread.join()
    assert (outcome.status, outcome.exit_class) == ("drained", ExitClass.DRAINED)
    attempts = bench.ledger.attempts(stage_key=outcome.stage_key)
    assert [a.exit_class for a in attempts] == [40, 30]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks())


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
