"""Drain and cancel from another process: what stops, what is killed, and when it is said to be gone."""

import json
import time
from pathlib import Path

import pytest
from warm_start import start_warm

from m4v.core.errors import InfrastructureError, InputError
from pipelines.ledger import Ledger, PipelineRunRow, Status
from pipelines.ledger.process import is_dead
from pipelines.processes import survivors
from pipelines.stopping import Cancellation, drain
from pipelines.workspace import Workspace

START_S = 300


class Running:
    """The small pipeline in a process of its own, whose first stage has begun."""

    def __init__(self, root: Path, **count: object) -> None:
        self.home, self.switches = root / "home", root / "switches"
        self.switches.mkdir()
        options = json.dumps({"count": count, "grace_s": 3.0})
        arguments = [str(self.home), str(self.switches), options]
        self.process = start_warm("bench:from_command_line", arguments, stdout=root / "said.txt")
        deadline = time.monotonic() + START_S
        while not (self.switches / "work.log").exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)
        self.ledger = Ledger.open(Workspace.open(self.home).ledger_url)

    @property
    def run(self) -> PipelineRunRow:
        return self.ledger.pipeline_runs()[0]

    @property
    def id(self) -> str:
        return self.run.pipeline_run_id

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.ledger.close()


@pytest.fixture
def start(tmp_path):
    started: list[Running] = []

    def begin(**count: object) -> Running:
        started.append(Running(tmp_path, **count))
        return started[-1]

    yield begin
    for running in started:
        running.close()


def test_drain_lets_the_stage_save_and_the_same_run_resumes(start):
    running = start(items=4000, seconds_an_item=0.25)
    asked = drain(running.ledger, running.id, by="ada", reason="maintenance")
    assert drain(running.ledger, running.id, by="bob", reason="me too") == asked, "one request stands"
    running.process.wait(START_S)
    assert running.run.status is Status.DRAINED
    done = len((running.switches / "work.log").read_text().splitlines())
    assert 0 < done < 4000
    state = list((running.home / "store" / "state").rglob("*"))
    assert state, "nothing was saved"
    with pytest.raises(InputError, match="it has ended: drained"):
        drain(running.ledger, running.id, by="ada", reason="again")


def test_a_single_stage_is_drained_by_its_attempt(start):
    running = start(items=4000, seconds_an_item=0.25)
    (attempt,) = running.ledger.attempts(status=Status.RUNNING)
    drain(running.ledger, attempt.attempt_id, by="ada", reason="only this one")
    deadline = time.monotonic() + START_S
    while (status := running.ledger.attempt(attempt.attempt_id).status) is Status.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status is Status.DRAINED
    assert running.run.status is Status.RUNNING, "the other stages go on"


def test_cancel_of_a_run_that_drains_kills_nothing(start):
    running = start(items=4000, seconds_an_item=0.25)
    stopped = Cancellation(running.ledger, running.id).run(by="ada", reason="no", grace_s=START_S)
    assert (stopped.status, stopped.killed) == (Status.DRAINED, 0)
    assert running.ledger.events(subject=running.id, limit=None)[-1].kind == "pipeline.cancelled"


def test_cancel_kills_a_stage_that_does_not_listen_and_confirms_only_then(start):
    running = start(items=2, seconds_an_item=300)
    (attempt,) = running.ledger.attempts(status=Status.RUNNING)
    told: list[str] = []
    stopped = Cancellation(running.ledger, running.id, told.append).run(by="ada", reason="stuck", grace_s=0.5)
    assert stopped.killed >= 2, "supervisor and stage"
    assert survivors(Path(attempt.work_dir)) == []
    assert running.run.status is not Status.RUNNING
    assert running.ledger.attempt(attempt.attempt_id).status is not Status.RUNNING
    assert "the time is up: killing its stages" in told
    running.process.wait(START_S)
    event = running.ledger.events(subject=running.id, limit=None)[-1]
    assert (event.kind, event.payload["killed"], event.payload["by"]) == ("pipeline.cancelled", stopped.killed, "ada")


def test_cancel_of_a_run_whose_process_was_killed_closes_it(start):
    running = start(items=2, seconds_an_item=300)
    runner = running.ledger.runner_of(running.id)
    running.process.kill()
    running.process.wait()
    stopped = Cancellation(running.ledger, running.id).run(by="ada", reason="gone", grace_s=20)
    assert is_dead(runner)
    assert stopped.status is Status.LOST
    assert [a.status for a in running.ledger.attempts()] == [Status.LOST]


def test_a_run_of_another_host_is_asked_and_never_called_gone(tmp_path, monkeypatch):
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        monkeypatch.setattr("pipelines.ledger.pipeline_runs.host_name", lambda: "elsewhere")
        monkeypatch.setattr("pipelines.ledger.pipeline_runs.process_token", lambda: "boot/ns/1/2")
        run_id = ledger.begin_pipeline_run("micro", {})
        with pytest.raises(InfrastructureError, match=r"cannot be reached from here.*elsewhere"):
            Cancellation(ledger, run_id).run(by="ada", reason="no", grace_s=0)
        assert ledger.drain_requests()[0].pipeline_run_id == run_id, "the request stands"
        assert ledger.pipeline_run(run_id).status is Status.RUNNING
        assert "pipeline.cancelled" not in [e.kind for e in ledger.events(limit=None)]


def test_only_what_runs_can_be_stopped(tmp_path):
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        run_id = ledger.begin_pipeline_run("micro", {})
        ledger.finish_pipeline_run(run_id, 0)
        for stop in (lambda: drain(ledger, run_id, by="a", reason="r"), lambda: Cancellation(ledger, run_id)):
            with pytest.raises(InputError, match="it has ended: succeeded"):
                stop()
