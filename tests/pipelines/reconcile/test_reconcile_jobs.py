"""Cluster jobs against attempts. Slurm answers from a file here; a real one in the deep tests of its launcher."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest
from bench import open_bench

from m4v.core.errors import ExitClass, InfrastructureError
from pipelines.launchers.base import attempt_of_job, job_name
from pipelines.ledger import Claim, Ledger, Status
from pipelines.reconcile import FindingKind, reconcile_jobs

KEY = "ab" * 32
SQUEUE = """#!/bin/sh
case "$*" in
*-j*) id=$(echo "$*" | sed 's/.*-j //'); sed 's/^[^|]*|//' "$JOBS" | grep "^$id|" || true;;
*) cat "$JOBS";;
esac
"""
SCANCEL = """#!/bin/sh
grep -v "|$1|" "$JOBS" > "$JOBS.new"; mv "$JOBS.new" "$JOBS"
"""


class Cluster(NamedTuple):
    ledger: Ledger
    jobs: Path

    def submitted(self, *, exit_class: int | None = None, held: bool = False) -> tuple[str, Claim]:
        """An attempt with a cluster job; ended when it has an exit class. Returns its id and claim."""
        claim = self.ledger.claim(KEY, "somebody")
        attempt = self.ledger.begin_attempt(claim, stage="train", work_dir="/w", log_path="/w/log", launcher="slurm")
        self.ledger.launched(attempt, job=job_name(KEY, attempt))
        if exit_class is not None:
            self.ledger.finish_attempt(attempt, exit_class, "said so")
        if not held:
            self.ledger.release(claim)
        return attempt, claim

    def queue(self, *lines: str) -> None:
        self.jobs.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(tmp_path / "jobs"))
    (tmp_path / "jobs").write_text("")
    with open_bench(tmp_path / "home") as bench:
        yield Cluster(bench.ledger, tmp_path / "jobs")


def test_a_job_whose_attempt_has_ended_is_cancelled(cluster):
    attempt, _ = cluster.submitted(exit_class=ExitClass.CONFIG)
    cluster.queue(f"{job_name(KEY, attempt)}|7|RUNNING|None|n[1-2]", "somebody-else|8|RUNNING|None|n3")
    (looked,) = reconcile_jobs(cluster.ledger, apply=False, cancel_unwatched=False)
    assert (looked.kind, looked.subject, looked.repaired) == (FindingKind.ORPHAN_JOB, "7", False)
    assert "n[1-2]" in looked.says
    assert str(Status.FAILED) in looked.says
    assert "|7|" in cluster.jobs.read_text()
    (found,) = reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=False)
    assert found.repaired
    assert cluster.jobs.read_text() == "somebody-else|8|RUNNING|None|n3\n"
    assert reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=False) == []


def test_a_job_that_nobody_waits_for_is_left_for_the_next_run_unless_asked(cluster):
    attempt, _ = cluster.submitted()
    cluster.queue(f"{job_name(KEY, attempt)}|7|PENDING|Resources|")
    (found,) = reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=False)
    assert (found.kind, found.repaired) == (FindingKind.UNWATCHED_JOB, False)
    assert "attaches to it" in found.repair
    assert "|7|" in cluster.jobs.read_text()
    (found,) = reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=True)
    assert found.repaired
    assert cluster.jobs.read_text() == ""


def test_watched_jobs_ended_ones_and_those_of_another_ledger_are_no_findings(cluster):
    attempt, _ = cluster.submitted(held=True)
    cluster.queue(
        f"{job_name(KEY, attempt)}|7|RUNNING|None|n1", f"{job_name(KEY, attempt)}|6|CANCELLED|None|n1",
        f"{job_name(KEY, '0' * 16)}|9|RUNNING|None|n2",
    )  # fmt: skip
    assert reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=True) == []
    assert "|9|" in cluster.jobs.read_text()


def test_a_job_that_a_later_attempt_attached_to_is_judged_by_that_one(cluster):
    first, _ = cluster.submitted()
    claim = cluster.ledger.claim(KEY, "another")
    later = cluster.ledger.begin_attempt(claim, stage="train", work_dir="/w", log_path="/w/log", launcher="slurm")
    cluster.ledger.launched(later, job=job_name(KEY, first))
    cluster.ledger.finish_attempt(later, ExitClass.BUG, "fell over")
    cluster.ledger.release(claim)
    cluster.queue(f"{job_name(KEY, first)}|7|RUNNING|None|n1")
    (found,) = reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=False)
    assert found.kind is FindingKind.ORPHAN_JOB
    assert later in found.says


def test_without_slurm_there_is_no_answer_and_a_silent_one_is_an_error(cluster, monkeypatch, tmp_path):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2; exit 1\n")
    with pytest.raises(InfrastructureError, match="Socket timed out"):
        reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert reconcile_jobs(cluster.ledger, apply=True, cancel_unwatched=False) is None


def test_only_names_of_ours_are_read():
    assert attempt_of_job(job_name(KEY, "0123456789abcdef")) == "0123456789abcdef"
    assert attempt_of_job("m4v-train") is None
    assert attempt_of_job("xm4v-abababababab-1") is None
