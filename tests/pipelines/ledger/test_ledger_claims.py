"""Claims: one live holder per stage key, fenced, with dead holders taken over."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ledger_scenario import Scenario, artifact, kill_self, new_run, start_child, wait_child

from m4v.core.errors import ExitClass, InputError
from pipelines.ledger import ClaimHeld, ClaimLost, Ledger, Status
from pipelines.ledger.process import is_alive, is_dead, process_token


def test_a_second_claim_waits_for_the_first(ledger: Ledger) -> None:
    claim = ledger.claim("key", "flow-1", lease_s=60)
    with pytest.raises(ClaimHeld, match=r"stage is being run by flow-1 on .*, lease until 20\d\d-") as held:
        ledger.claim("key", "flow-2")
    assert held.value.exit_class == ExitClass.INFRASTRUCTURE
    assert held.value.lease_until == claim.lease_until
    assert ledger.holder("key") == claim
    assert ledger.claim("other key", "flow-2").fence == 1
    ledger.release(claim)
    assert ledger.holder("key") is None
    again = ledger.claim("key", "flow-2")
    assert (again.fence, again.owner) == (2, "flow-2")


def test_a_lease_that_ran_out_is_taken_over(ledger: Ledger) -> None:
    old = ledger.claim("key", "flow-1", lease_s=0.05)
    time.sleep(0.1)
    assert ledger.holder("key") is None
    new = ledger.claim("key", "flow-2")
    assert new.fence == old.fence + 1
    with pytest.raises(ClaimLost, match=r"flow-2 on .* holds fence 2"):
        ledger.renew(old)
    ledger.release(old)  # must not release what is another's now
    assert ledger.holder("key") == new
    (taken,) = ledger.events(subject="key")
    assert (taken.kind, taken.payload) == ("claim.taken-over", {"from": "flow-1", "by": "flow-2"})


def test_a_late_holder_keeps_a_claim_that_nobody_took(ledger: Ledger) -> None:
    claim = ledger.claim("key", "flow-1", lease_s=0.05)
    attempt = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
    time.sleep(0.1)
    renewed = ledger.renew(claim, lease_s=60)
    assert renewed.lease_until > claim.lease_until
    assert ledger.holder("key") == renewed
    ledger.commit_run(claim, attempt, new_run("key"), [], {"dataset": artifact("d")})


def test_a_lease_needs_time(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="positive time: 0"):
        ledger.claim("key", "flow-1", lease_s=0)


def test_a_holder_that_died_here_is_taken_over_at_once(scenario: Scenario, ledger: Ledger) -> None:
    def hold_and_die() -> None:
        with Ledger.open(scenario.url) as mine:
            claim = mine.claim("key", "doomed", lease_s=3600)
            mine.begin_attempt(claim, stage="train", work_dir="w", log_path="l")
            mine.begin_pipeline_run("demo", {})
            kill_self()

    pid = start_child(hold_and_die)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the process table
    try:
        assert ledger.claim("key", "heir").fence == 2
        (attempt,) = ledger.attempts()
        (pipeline,) = ledger.pipeline_runs()
        assert (attempt.status, pipeline.status) == (Status.RUNNING, Status.RUNNING)
        assert sorted(ledger.reap()) == sorted([attempt.attempt_id, pipeline.pipeline_run_id])
        assert ledger.reap() == []
        (attempt,) = ledger.attempts()
        assert (attempt.status, attempt.exit_class) == (Status.LOST, ExitClass.INFRASTRUCTURE)
        assert ledger.pipeline_run(pipeline.pipeline_run_id).status == Status.LOST
        assert ledger.verify_chain().ok
    finally:
        wait_child(pid)


def test_a_living_attempt_is_not_reaped(ledger: Ledger) -> None:
    claim = ledger.claim("key", "me")
    attempt = ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="l")
    pipeline = ledger.begin_pipeline_run("demo", {})
    assert ledger.reap() == []
    assert ledger.attempt(attempt).status == Status.RUNNING
    assert ledger.pipeline_run(pipeline).status == Status.RUNNING


def test_a_holder_that_is_late_is_not_reaped_while_it_lives(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ledger.claims.ABANDONED_S", 0.0)
    claim = ledger.claim("key", "sleeper", lease_s=0.05)
    attempt = ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="l")
    time.sleep(0.1)
    assert ledger.holder("key") is None, "somebody else may take it over"
    assert ledger.reap() == []
    assert ledger.attempt(attempt).status == Status.RUNNING
    ledger.release(claim)
    assert ledger.lost() == ([attempt], [])
    assert ledger.reap() == [attempt]


def test_a_holder_on_another_host_is_given_up_after_a_while(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ledger.claims.process_token", lambda: "other-boot/pid:[1]/7/1")
    claim = ledger.claim("key", "far away", lease_s=0.05)
    attempt = ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="l")
    time.sleep(0.1)
    assert ledger.lost() == ([], []), "it may only be late"
    monkeypatch.setattr("pipelines.ledger.claims.ABANDONED_S", 0.0)
    assert ledger.lost() == ([attempt], [])


def test_only_one_of_many_processes_gets_the_claim(scenario: Scenario, ledger: Ledger, tmp_path: Path) -> None:
    start = tmp_path / "start"

    def race(number: int) -> None:
        with Ledger.open(scenario.url) as mine:
            while not start.exists():
                time.sleep(0.001)
            try:
                claim = mine.claim("key", f"racer-{number}")
                (tmp_path / f"won-{number}").write_text(str(claim.fence))
            except ClaimHeld:
                (tmp_path / f"waits-{number}").touch()
            while len(list(tmp_path.glob("w*-*"))) < 5:  # stay alive until all have tried
                time.sleep(0.005)

    pids = [start_child(lambda n=n: race(n)) for n in range(5)]  # type: ignore[misc]
    start.touch()
    assert [wait_child(p) for p in pids] == [0] * 5
    assert [p.read_text() for p in tmp_path.glob("won-*")] == ["1"]
    assert len(list(tmp_path.glob("waits-*"))) == 4


def test_only_a_process_of_this_host_and_boot_is_known_dead() -> None:
    mine = process_token()
    host, pid, started = mine.rsplit("/", 2)
    assert not is_dead(mine)
    assert is_dead(f"{host}/{pid}/{int(started) - 1}")  # the number was given to a later process
    assert is_dead(f"{host}/4194999/1")
    assert not is_dead(f"other-boot/pid:[1]/{pid}/{started}0")
    assert not is_dead(f"{host}/{pid}/")
    assert not is_dead("")
    assert is_alive(mine)
    assert not any(
        is_alive(token) for token in ("", f"{host}/{pid}/", f"{host}/4194999/1", f"other/pid:[1]/{pid}/{started}")
    )
