"""Stages as jobs of a real Slurm: attached to instead of submitted twice, drained and queued again, cancelled for good,
and the same bytes as on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bench import open_bench, wait_for, work_log
from slurm_cluster import is_installed, running_cluster
from stages_for_faults import GANG, CountConfig, pipeline

from m4v.core.config import parse
from m4v.core.errors import ExitClass
from m4v.core.stage import Resources
from pipelines.launchers import LocalLauncher
from pipelines.launchers.slurm import SlurmLauncher
from pipelines.launchers.slurm_config import SlurmConfig
from pipelines.ledger import Ledger, Status
from pipelines.reconcile import reconcile_jobs, reconcile_lost
from pipelines.spec import StageNode
from pipelines.stopping import Cancellation

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(not is_installed(), reason="no Slurm here: bash infra/setup/slurm.sh installs it"),
]
BENCH = Path(__file__).parents[2] / "faults" / "bench.py"
QUICK = {"poll_s": 0.5, "ranks_per_node": 1, "drain_s": 30}
TIMEOUT_S = 500


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as opened:
        yield opened


@pytest.fixture
def slurm_bench(cluster, tmp_path):
    with open_bench(tmp_path / "home") as opened:
        opened.launcher = SlurmLauncher(parse(SlurmConfig, QUICK, "test"))
        yield opened
    for job_id in cluster.live():
        cluster.call("scancel", job_id)
    wait_for(lambda: not cluster.live(), 60)


def artifacts(outcomes) -> dict[str, str]:
    return {node: out.artifact_id for node, o in outcomes.items() for out in o.outputs.values()}


def local_artifacts(folder: Path, nodes) -> dict[str, str]:
    with open_bench(folder) as local:
        assert isinstance(local.launcher, LocalLauncher)
        return artifacts(local.run(nodes))


def in_background(run):
    result = {}
    thread = threading.Thread(target=lambda: result.update(run.run_all()))
    thread.start()
    return thread, result


def events(ledger: Ledger, stage_key: str) -> list[tuple[str, dict]]:
    attempts = [a.attempt_id for a in ledger.attempts(stage_key=stage_key)]
    return [(event.kind, event.payload) for event in ledger.supervision(attempts)]


def test_a_pipeline_makes_the_bytes_that_it_makes_here(slurm_bench, switches, tmp_path):
    nodes = pipeline(switches)
    outcomes = slurm_bench.run(nodes)
    assert [o.error for o in outcomes.values()] == [None] * 3
    assert artifacts(outcomes) == local_artifacts(tmp_path / "local", nodes)
    (attempt,) = slurm_bench.ledger.attempts(stage_key=outcomes["total"].stage_key)
    assert attempt.launcher == "slurm"
    assert attempt.job == f"m4v-{attempt.stage_key[:12]}-{attempt.attempt_id}"
    kinds = [kind for kind, _ in events(slurm_bench.ledger, attempt.stage_key)]
    assert kinds == ["attempt.submitted", "attempt.started", "attempt.started"]
    assert slurm_bench.ledger.verify_chain().ok


def gang_node(switches: Path, **config) -> StageNode:
    resources = Resources(ranks=2, threads=1, workers=1)
    return StageNode("gang", GANG, CountConfig(**config), resources=resources, locations={"switches": str(switches)})


def test_a_gang_over_two_nodes(slurm_bench, switches, tmp_path):
    nodes = [gang_node(switches)]
    outcomes = slurm_bench.run(nodes)
    assert outcomes["gang"].error is None
    started = [facts for kind, facts in events(slurm_bench.ledger, outcomes["gang"].stage_key) if "started" in kind]
    assert len(started[0]["nodes"]) == 2
    assert artifacts(outcomes) == local_artifacts(tmp_path / "local", nodes)


def test_a_killed_rank_ends_the_gang_on_both_nodes_and_is_retried(slurm_bench, switches):
    (switches / "SIGKILL").write_text("1")
    node = gang_node(switches)
    node = StageNode("gang", GANG, node.config, resources=node.resources, locations={**node.locations, "bad_rank": "1"})
    outcome = slurm_bench.run([node])["gang"]
    assert outcome.status == "ran"
    attempts = slurm_bench.ledger.attempts(stage_key=outcome.stage_key)
    assert sorted(a.exit_class for a in attempts) == [0, 30]
    failures = slurm_bench.ledger.node_failures("slurm", 1.0)
    assert len(failures) == 1, "the node of the rank that died, not the one of the rank that lost it"


def test_the_signal_before_the_limit_drains_and_the_job_goes_on_from_its_state(
    slurm_bench, cluster, switches, tmp_path
):
    nodes = pipeline(switches, first=CountConfig(label="a", items=60, seconds_an_item=0.1))[:1]
    thread, outcomes = in_background(slurm_bench.new_run(nodes))
    wait_for(lambda: len(work_log(switches)) >= 5)
    (job_id,) = cluster.live()
    cluster.call("scancel", "--signal=TERM", "--batch", job_id)  # as Slurm itself does before the limit
    thread.join(TIMEOUT_S)
    assert outcomes["count.a"].error is None
    assert len(cluster.jobs()) >= 1
    key = outcomes["count.a"].stage_key
    starts = [(f["start"], f["ended"]) for kind, f in events(slurm_bench.ledger, key) if kind == "attempt.started"]
    assert starts == [(0, ""), (0, "requeued"), (1, ""), (1, "finished")]
    assert len(slurm_bench.ledger.attempts(stage_key=key)) == 1, "the job is queued again, not submitted"
    assert sorted(work_log(switches)) == sorted(f"a {i}" for i in range(60)), "no item was worked twice"
    assert artifacts(outcomes) == local_artifacts(tmp_path / "local", pipeline(first=nodes[0].config)[:1])


def test_a_suspended_job_goes_on_where_it_was(slurm_bench, cluster, switches):
    nodes = pipeline(switches, first=CountConfig(label="a", items=60, seconds_an_item=0.1))[:1]
    thread, outcomes = in_background(slurm_bench.new_run(nodes))
    wait_for(lambda: len(work_log(switches)) >= 5)
    (job_id,) = cluster.live()
    for _ in range(2):
        cluster.call("scontrol", "suspend", job_id)
        time.sleep(2.0)  # for the step on the node to stop
        done = len(work_log(switches))
        time.sleep(5.0)
        assert len(work_log(switches)) == done < 60
        cluster.call("scontrol", "resume", job_id)
        time.sleep(1.0)
    thread.join(TIMEOUT_S)
    assert outcomes["count.a"].status == "ran"
    key = outcomes["count.a"].stage_key
    ended = [f["ended"] for kind, f in events(slurm_bench.ledger, key) if kind == "attempt.started"]
    assert ended == ["", "finished"], "nothing drained, nothing queued again"
    assert [a.exit_class for a in slurm_bench.ledger.attempts(stage_key=key)] == [0]
    assert sorted(work_log(switches)) == sorted(f"a {i}" for i in range(60)), "no item was worked twice"


def test_the_time_limit_itself(cluster, slurm_bench, switches):
    slurm_bench.launcher = SlurmLauncher(parse(SlurmConfig, {**QUICK, "time_minutes": 1}, "test"))
    nodes = pipeline(switches, first=CountConfig(label="a", items=80, seconds_an_item=1.0))[:1]
    outcome = slurm_bench.run(nodes)["count.a"]
    assert outcome.error is None
    ended = [f["ended"] for kind, f in events(slurm_bench.ledger, outcome.stage_key) if kind == "attempt.started"]
    assert "requeued" in ended
    assert ended[-1] == "finished"


def test_without_requeue_the_run_submits_a_new_job(slurm_bench, cluster, switches):
    slurm_bench.launcher = SlurmLauncher(parse(SlurmConfig, {**QUICK, "requeue": False}, "test"))
    nodes = pipeline(switches, first=CountConfig(label="a", items=40, seconds_an_item=0.1))[:1]
    thread, outcomes = in_background(slurm_bench.new_run(nodes))
    wait_for(lambda: len(work_log(switches)) >= 5)
    cluster.call("scancel", "--signal=TERM", "--batch", *cluster.live())
    thread.join(TIMEOUT_S)
    assert outcomes["count.a"].status == "ran"
    attempts = slurm_bench.ledger.attempts(stage_key=outcomes["count.a"].stage_key)
    assert [a.exit_class for a in attempts] == [0, 40]
    assert len(work_log(switches)) == 40


def test_a_drain_that_somebody_asked_for_ends_the_job(slurm_bench, cluster, switches):
    run = slurm_bench.new_run(pipeline(switches, first=CountConfig(items=500, seconds_an_item=0.1))[:1])
    thread, outcomes = in_background(run)
    wait_for(lambda: len(work_log(switches)) >= 3)
    run.drain()
    thread.join(TIMEOUT_S)
    assert (outcomes["count.a"].status, outcomes["count.a"].exit_class) == ("drained", ExitClass.DRAINED)
    wait_for(lambda: not cluster.live(), 60)


def start(home: Path, switches: Path, **options) -> subprocess.Popen:
    command = [sys.executable, str(BENCH), str(home), str(switches), json.dumps({"slurm": QUICK, **options})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


PLACES = [
    ("pipelines.ledger:Ledger.begin_attempt after 1", 0),
    ("pipelines.ledger:Ledger.launched after 1", 0),
    ("pipelines.launchers.slurm_client:SlurmClient.submit before 1", 0),
    ("pipelines.launchers.slurm_client:SlurmClient.submit after 1", 1),
    ("pipelines.launchers.slurm:SlurmLauncher.submit after 1", 1),
    ("pipelines.watch:Watch.wait before 1", 1),
    ("pipelines.launchers.slurm:SlurmLauncher.poll after 3", 1),
    ("pipelines.store:ArtifactStore.publish before 1", 1),
    ("pipelines.ledger:Ledger.commit_run before 1", 1),
]


@pytest.mark.parametrize(("place", "submitted"), PLACES, ids=[p for p, _ in PLACES])
def test_killed_anywhere_a_second_call_submits_nothing_twice(cluster, tmp_path, switches, place, submitted):
    """`submitted`: jobs that the killed process had submitted; the second call must make them one in all."""
    before = len(cluster.jobs())
    slow = {"nodes": 1, "count": {"items": 10, "seconds_an_item": 0.3}}
    killed = start(tmp_path / "home", switches, **slow, die_at=place)
    killed.communicate(timeout=TIMEOUT_S)
    assert killed.returncode == -signal.SIGKILL
    assert len(cluster.jobs()) - before == submitted
    out, _ = start(tmp_path / "home", switches, **slow).communicate(timeout=TIMEOUT_S)
    assert json.loads(out.splitlines()[-1])["count.a"]["status"] == "ran"
    assert len(cluster.jobs()) - before == 1
    assert sorted(work_log(switches)) == sorted(f"a {i}" for i in range(10))
    with Ledger.open(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}") as ledger:
        assert ledger.attempts(status=Status.RUNNING) == []
        assert ledger.verify_chain().ok


def test_a_second_ctrl_c_cancels_and_the_job_is_gone(cluster, tmp_path, switches):
    process = start(tmp_path / "home", switches, nodes=1, count={"items": 500, "seconds_an_item": 5.0})
    wait_for(lambda: bool(work_log(switches)))
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert not cluster.live(), "the process may end only once the job has"


def test_the_job_of_a_dead_run_is_cancelled_by_its_id(cluster, tmp_path, switches):
    process = start(tmp_path / "home", switches, nodes=1, count={"items": 500, "seconds_an_item": 0.5})
    wait_for(lambda: bool(work_log(switches)))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert cluster.live(), "a job outlives the process that submitted it"
    with Ledger.open(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}") as ledger:
        (run,) = ledger.pipeline_runs()
        ledger.reap()
        stopped = Cancellation(ledger, run.pipeline_run_id).run(by="ada", reason="test", grace_s=0.5)
    assert stopped.status is Status.LOST
    assert not cluster.live()


def test_a_lost_node_is_infrastructure_recorded_and_left_out(cluster, slurm_bench, switches):
    config = {**QUICK, "exclude_after": 1}
    slurm_bench.launcher = SlurmLauncher(parse(SlurmConfig, config, "test"))
    nodes = pipeline(switches, first=CountConfig(label="a", items=300, seconds_an_item=0.1))[:1]
    thread, outcomes = in_background(slurm_bench.new_run(nodes))
    wait_for(lambda: len(work_log(switches)) >= 5)
    (attempt,) = slurm_bench.ledger.attempts(status=Status.RUNNING)
    wait_for(lambda: bool(slurm_bench.ledger.supervision([attempt.attempt_id])[1:]))
    node = slurm_bench.ledger.supervision([attempt.attempt_id])[1].payload["nodes"][0]
    cluster.lose(node)
    try:
        thread.join(TIMEOUT_S)
    finally:
        cluster.restore(node)
    outcome = outcomes["count.a"]
    assert outcome.status == "ran"
    attempts = slurm_bench.ledger.attempts(stage_key=outcome.stage_key)
    assert [a.exit_class for a in attempts] == [0, 30]
    assert node in attempts[1].message
    assert list(slurm_bench.ledger.node_failures("slurm", 1.0)) == [node]
    excluded = [facts for kind, facts in events(slurm_bench.ledger, outcome.stage_key) if "excluded" in kind]
    assert list(excluded[0]["nodes"]) == [node]
    assert f'--exclude="{node}"' in Path(attempts[0].work_dir, "job.sh").read_text()
    assert set(work_log(switches)) == {f"a {i}" for i in range(300)}


def test_a_job_that_outlives_its_attempt_is_found_and_cancelled(cluster, tmp_path, switches):
    process = start(tmp_path / "home", switches, nodes=1, count={"items": 500, "seconds_an_item": 0.5})
    wait_for(lambda: bool(work_log(switches)))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (job,) = cluster.live()
    with Ledger.open(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}") as ledger:
        wait_for(lambda: bool(ledger.lost()[0]))
        assert [f.kind for f in reconcile_lost(ledger, apply=True)] == ["lost-attempt", "lost-run"]
        (found,) = reconcile_jobs(ledger, apply=True, cancel_unwatched=False) or []
        assert (found.kind, found.subject, found.repaired) == ("unwatched-job", job, False)
        assert cluster.live() == [job]
        (found,) = reconcile_jobs(ledger, apply=True, cancel_unwatched=True) or []
        assert found.repaired
    assert not cluster.live(), "told as cancelled only once it is gone"
