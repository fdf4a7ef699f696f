"""Execution of small real pipelines: hits with reasons, early cutoff, exit classes, retries, adoption, claims."""

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from bench import open_bench, wait_for, work_log
from stages_for_faults import (
    GATE,
    REPORT,
    TOTAL,
    WATCH,
    CountConfig,
    GateConfig,
    TotalConfig,
    pipeline,
)

from m4v.core.artifacts import verify
from m4v.core.errors import ConfigError, ExitClass
from m4v.core.storage import Storage
from pipelines.attempt import AttemptRunner
from pipelines.execute import NodeStatus
from pipelines.ledger import ClaimLost, Status
from pipelines.spec import StageNode


def statuses(outcomes) -> list[str]:
    return [str(o.status) for o in outcomes.values()]


def artifacts(outcomes) -> dict[str, str]:
    return {f"{o.node_id}.{n}": out.artifact_id for o in outcomes.values() for n, out in o.outputs.items()}


def text(outcome, name: str, file: str) -> str:
    return Storage(outcome.outputs[name].uri).read_bytes(file).decode()


def one(switches: Path, **config) -> list[StageNode]:
    return pipeline(switches, first=CountConfig(label="a", **config))[:1]


def test_run_then_run_again(bench, switches):
    first = bench.run(pipeline(switches))
    assert statuses(first) == ["ran", "ran", "ran"]
    assert text(first["total"], "sum", "sum.txt") == "9\n"
    assert first["count.a"].reason == "first run of count.a in bench"
    again = bench.new_run(pipeline(switches))
    second = again.run_all()
    assert statuses(second) == ["hit", "hit", "hit"]
    assert f"same key as run {first['total'].run_id}" in second["total"].reason
    assert artifacts(second) == artifacts(first)
    assert work_log(switches) == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"], "nothing was worked twice"
    assert [n.how for n in bench.ledger.nodes(again.id)] == ["hit"] * 3
    assert bench.ledger.pipeline_run(again.id).status == Status.SUCCEEDED
    assert bench.ledger.verify_chain().ok


def test_nothing_of_resume_state_or_staging_is_left(bench, switches):
    bench.run(pipeline(switches))
    store = Path(bench.workspace.store_uri)
    assert list((store / "state").iterdir()) == []
    assert list(bench.workspace.work_root.glob("*/*/staging")) == []
    assert list(bench.workspace.work_root.glob("*/*/scratch")) == []
    logs = list(bench.workspace.work_root.glob("*/*/stage.log"))
    assert len(logs) == 3


def test_only_what_reads_a_changed_output_runs_again(bench, switches):
    bench.run(pipeline(switches))
    changed = bench.run(pipeline(switches, second=CountConfig(label="b", factor=5)))
    assert statuses(changed) == ["hit", "ran", "ran"]
    assert changed["count.b"].reason == "config factor: 2 -> 5"
    assert re.fullmatch("input part.1: [0-9a-f]{12} -> [0-9a-f]{12}", changed["total"].reason)


def test_equal_output_of_a_changed_stage_is_an_early_cutoff(bench, switches):
    bench.run(pipeline(switches))
    nodes = pipeline(switches)
    nodes[0] = replace(nodes[0], spec=replace(nodes[0].spec, version=2))
    outcomes = bench.run(nodes)
    assert statuses(outcomes) == ["ran", "hit", "hit"]
    assert outcomes["count.a"].reason == "stage version 1 -> 2"


def test_a_changed_folder_runs_its_stage(bench, switches, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    nodes = [StageNode("watch", WATCH, CountConfig(), locations={"folder": str(folder)})]
    assert statuses(bench.run(nodes)) == ["ran"]
    assert statuses(bench.run(nodes)) == ["hit"]
    (folder / "new.mp4").touch()
    outcome = bench.run(nodes)["watch"]
    assert outcome.status == "ran"
    assert outcome.reason == "files outside the store: (none) -> new.mp4"


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damaged_or_missing_outputs_are_no_hit(bench, switches, damage):
    first = bench.run(one(switches))["count.a"]
    place = Path(first.outputs["lines"].uri)
    if damage == "truncate":
        (place / "lines.txt").write_text("")
    elif damage == "remove":
        shutil.rmtree(place)
    else:
        (place / "manifest.json").unlink()
    second = bench.run(one(switches))["count.a"]
    assert second.status == "ran"
    assert f"output lines of run {first.run_id} is gone or damaged" in second.reason
    assert artifacts({"a": second}) == artifacts({"a": first})
    verify(Storage(str(place)), first.outputs["lines"].artifact_id)


def test_a_changed_byte_is_found_by_a_deep_check_only(bench, switches):
    first = bench.run(one(switches))["count.a"]
    file = Path(first.outputs["lines"].uri) / "lines.txt"
    file.write_bytes(file.read_bytes().replace(b"a", b"z"))
    assert statuses(bench.run(one(switches))) == ["hit"]
    assert statuses(bench.run(one(switches), deep_verify=True)) == ["ran"]
    verify(Storage(str(file.parent)), first.outputs["lines"].artifact_id)


@pytest.mark.parametrize(
    ("switch", "exit_class", "starts"),
    [
        ("integrity", 20, 1),
        ("human", 50, 1),
        ("bug", 1, 1),
        ("infrastructure", 30, 3),
        ("SIGKILL", 30, 3),
        ("SIGABRT", 1, 2),
    ],
)
def test_failures_by_exit_class_and_what_waits_behind_them(bench, switches, switch, exit_class, starts):
    (switches / switch).write_text("")
    nodes = one(switches)
    nodes.append(StageNode("total", TOTAL, TotalConfig(), {"part.0": ("count.a", "lines")}))
    run = bench.new_run(nodes)
    outcomes = run.run_all()
    assert statuses(outcomes) == ["failed", "blocked"]
    failed = outcomes["count.a"]
    assert failed.exit_class == exit_class
    assert "count.a, which has no outputs" in outcomes["total"].reason
    attempts = bench.ledger.attempts(stage_key=failed.stage_key)
    assert len(attempts) == starts
    assert {a.status for a in attempts} == {Status.FAILED}
    assert Path(failed.log_path).is_file()
    row = bench.ledger.pipeline_run(run.id)
    assert (row.status, row.exit_class) == (Status.FAILED, exit_class)
    assert "count.a:" in row.message
    (switches / switch).unlink()
    assert statuses(bench.run(nodes)) == ["ran", "ran"]


def test_infrastructure_failures_pass_after_a_retry(bench, switches):
    (switches / "infrastructure").write_text("2")
    notes = []
    run = bench.new_run(one(switches), on_event=lambda e: notes.append(e.text) if e.kind == "note" else None)
    assert statuses(run.run_all()) == ["ran"]
    assert len(notes) == 2
    assert "the network is away" in notes[0]
    key = run.outcomes["count.a"].stage_key
    assert [a.exit_class for a in bench.ledger.attempts(stage_key=key)] == [0, 30, 30]


def test_a_segfault_is_retried_once(bench, switches):
    (switches / "SIGSEGV").write_text("1")
    assert statuses(bench.run(one(switches))) == ["ran"]


def test_progress_reaches_the_ledger_and_the_caller(bench, switches):
    seen = []
    run = bench.new_run(one(switches, items=4, seconds_an_item=0.4))
    outcome = run.execute("count.a", on_progress=lambda p: seen.append(p.done))
    assert outcome.status is NodeStatus.RAN
    assert seen == sorted(seen)
    assert len(seen) >= 2
    (attempt,) = bench.ledger.attempts(stage_key=outcome.stage_key)
    assert attempt.progress is not None
    assert attempt.heartbeat_at is not None
    assert bench.ledger.run(outcome.run_id).metrics == {"items": 4}


def test_a_display_that_fails_does_not_end_the_stage(bench, switches, caplog):
    def broken(_: object) -> None:
        raise ConnectionError("the server's page is away")

    outcome = bench.new_run(one(switches, items=4, seconds_an_item=0.2)).execute("count.a", on_progress=broken)
    assert outcome.status is NodeStatus.RAN
    assert "the server's page is away" in caplog.text


def test_a_fault_of_ours_leaves_no_job_behind(bench, switches, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of the executor")

    monkeypatch.setattr("pipelines.watch._Pulse.beat", broken)
    with pytest.raises(ZeroDivisionError):
        bench.run(one(switches, items=100, seconds_an_item=0.2))
    mark = f"M4V_WORK_DIR={bench.workspace.home}".encode()
    running = [p for p in Path("/proc").glob("[0-9]*") if mark in environment_of(p)]
    assert running == []
    (attempt,) = bench.ledger.attempts()
    assert (attempt.exit_class, attempt.message) == (30, "cancelled: a bug of the executor")


def environment_of(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def test_drain_saves_state_and_the_next_run_goes_on(bench, switches):
    (switches / "hold.a").write_text("5")
    nodes = pipeline(switches, first=CountConfig(label="a", items=40))
    run = bench.new_run(nodes)
    threading.Thread(target=lambda: (wait_for(lambda: len(work_log(switches)) >= 2), run.drain())).start()
    outcomes = run.run_all()
    assert statuses(outcomes) == ["drained", "drained", "blocked"]
    assert run.exit_class == ExitClass.DRAINED
    assert 2 <= len(work_log(switches)) <= 5
    (switches / "hold.a").unlink()
    assert statuses(bench.run(nodes)) == ["ran", "ran", "ran"]
    assert work_log(switches)[:40] == [f"a {i}" for i in range(40)], "no item lost, none done twice"


def test_one_of_two_concurrent_runs_of_a_key_works_and_the_other_waits(bench, switches, tmp_path):
    (switches / "hold.a").write_text("3")
    notes: list[str] = []

    def hear(event):
        if event.kind == "note":
            notes.append(event.text)
        if any("waiting: stage is being run by" in note for note in notes):
            (switches / "hold.a").unlink(missing_ok=True)

    runs = [bench.new_run(one(switches, items=6), on_event=hear) for _ in range(2)]
    threads = [threading.Thread(target=run.run_all) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [run.outcomes["count.a"] for run in runs]
    assert sorted(str(outcome.status) for outcome in found) == ["hit", "ran"]
    assert len(bench.ledger.attempts(stage_key=found[0].stage_key)) == 1
    assert len(bench.ledger.runs(stage_key=found[0].stage_key)) == 1
    assert work_log(switches) == [f"a {i}" for i in range(6)]
    assert any("waiting: stage is being run by" in note for note in notes)


def crash(message: str):
    """Stands for the death of the process at this point: nothing after it may run."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit(message)

    return die


@pytest.mark.parametrize("point", ["before publishing", "between publish and commit", "after the commit"])
def test_a_crash_between_bytes_and_ledger_row_is_adopted(bench, switches, monkeypatch, point):
    with monkeypatch.context() as patch:
        if point == "before publishing":
            patch.setattr("pipelines.store.ArtifactStore.publish", crash("dead"))
        elif point == "between publish and commit":
            patch.setattr("pipelines.ledger.Ledger.commit_run", crash("dead"))
        else:
            patch.setattr(AttemptRunner, "forget", crash("dead"))
        with pytest.raises(SystemExit):
            bench.run(one(switches))
    outcome = bench.run(one(switches))["count.a"]
    assert work_log(switches) == ["a 0", "a 1", "a 2"], "finished work is not repeated"
    assert len(bench.ledger.attempts(stage_key=outcome.stage_key)) == 1
    if point == "after the commit":
        assert outcome.status == "hit"
    else:
        assert "adopted the finished result of attempt" in outcome.reason
    assert list(Path(bench.workspace.store_uri, "state").iterdir()) == []
    verify(Storage(outcome.outputs["lines"].uri), outcome.outputs["lines"].artifact_id)


def test_a_finished_result_whose_bytes_changed_is_not_adopted(bench, switches, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.store.ArtifactStore.publish", crash("dead"))
        with pytest.raises(SystemExit):
            bench.run(one(switches))
    (staged,) = bench.workspace.work_root.glob("*/*/staging/lines/lines.txt")
    staged.write_bytes(staged.read_bytes().replace(b"a", b"z"))
    outcome = bench.run(one(switches))["count.a"]
    assert outcome.status == "ran"
    assert "adopted" not in outcome.reason
    assert text(outcome, "lines", "lines.txt") == "a 0 0\na 1 1\na 2 2\n"


def test_a_lost_ledger_is_filled_again_by_adoption(bench, switches, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.store.ArtifactStore.publish", crash("dead"))
        with pytest.raises(SystemExit):
            bench.run(one(switches))
    shutil.move(bench.workspace.home / "work", tmp_path / "work")
    with open_bench(tmp_path / "other") as other:
        shutil.move(tmp_path / "work", other.workspace.home / "work")
        outcome = other.run(one(switches))["count.a"]
        assert "adopted" in outcome.reason
        assert len(other.ledger.attempts()) == 1
    assert work_log(switches) == ["a 0", "a 1", "a 2"]


def test_a_publish_that_fails_for_a_moment_repeats_no_work(bench, switches, monkeypatch):
    from m4v.core.errors import InfrastructureError
    from pipelines.store import ArtifactStore

    real, failures = ArtifactStore.publish, [1, 1]

    def flaky(self, output):
        if failures:
            failures.pop()
            raise InfrastructureError("the store is away")
        return real(self, output)

    monkeypatch.setattr(ArtifactStore, "publish", flaky)
    outcome = bench.run(one(switches))["count.a"]
    assert "adopted the finished result" in outcome.reason
    assert work_log(switches) == ["a 0", "a 1", "a 2"]
    assert len(bench.ledger.attempts(stage_key=outcome.stage_key)) == 1


def test_a_lost_claim_cancels_the_job_and_looks_again(bench, switches, monkeypatch):
    monkeypatch.setattr("pipelines.lease.RENEW_S", 0.05)
    lost = []

    def renew(self, claim, lease_s=60.0):
        if not lost and self.attempts(stage_key=claim.stage_key):  # the stage is under way
            lost.append(claim)
            self.release(claim)  # as if the lease had run out and somebody had come and gone
            raise ClaimLost(claim, "taken over")
        return claim

    monkeypatch.setattr("pipelines.ledger.Ledger.renew", renew)
    monkeypatch.setattr("pipelines.lease.Lease.__init__.__defaults__", (60.0, 0.05))
    outcome = bench.run(one(switches, items=5, seconds_an_item=0.1))["count.a"]
    assert outcome.status == "ran"
    assert len(bench.ledger.attempts(stage_key=outcome.stage_key)) == 2
    assert work_log(switches)[-1] == "a 4"


def test_report_gets_facts_outside_its_key(bench, switches):
    nodes = pipeline(switches)
    inputs = {n.id: (n.id, name) for n in nodes for name in n.spec.outputs}
    nodes.append(StageNode("report", REPORT, TotalConfig(), inputs))
    page = text(bench.run(nodes)["report"], "report", "index.html")
    facts = json.loads(page.removeprefix("<pre>").removesuffix("</pre>"))
    assert facts["recipe"] == "bench"
    by_id = {n["node_id"]: n for n in facts["nodes"]}
    assert by_id["total"]["status"] == "ran"
    assert by_id["total"]["work_seconds"] > 0
    assert by_id["report"]["status"] == "pending"
    assert {"from": "count.a", "to": "total", "input": "part.0"}.items() <= facts["edges"][0].items()
    assert statuses(bench.run(nodes)) == ["hit"] * 4, "facts must not be in the key"


def test_a_refused_gate_is_a_success_of_the_stage_and_exit_60_of_the_run(bench, switches):
    nodes = pipeline(switches)
    for at_least, exit_class in ((1, ExitClass.OK), (100, ExitClass.GATE_REFUSED)):
        gate = StageNode("gate", GATE, GateConfig(at_least=at_least), {"sum": ("total", "sum")})
        run = bench.new_run([*nodes, gate])
        assert run.run_all()["gate"].status == "ran"
        assert run.exit_class is exit_class
        assert run.gate_refused is (exit_class is ExitClass.GATE_REFUSED)


def test_until_takes_what_a_node_needs(bench, switches):
    assert list(bench.run(pipeline(switches), until="count.b")) == ["count.b"]
    run = bench.new_run(pipeline(switches))
    assert list(run.run_all(until="count.a")) == ["count.a"]
    assert bench.ledger.pipeline_run(run.id).status == Status.SUCCEEDED
    with pytest.raises(ConfigError, match="no such stage"):
        bench.new_run(pipeline(switches), until="count.c")


def test_reuse_takes_hits_only(bench, switches):
    assert bench.new_run(pipeline(switches)).reuse("count.a") is None
    bench.run(pipeline(switches))
    run = bench.new_run(pipeline(switches))
    assert run.reuse("total") is None, "its inputs are not known yet"
    assert [run.reuse(n).status for n in ("count.a", "count.b", "total")] == ["hit"] * 3


def test_config_errors_of_a_node_are_outcomes(bench, switches):
    nodes = one(switches)
    nodes[0] = replace(nodes[0], spec=replace(nodes[0].spec, function="training.no_such_module:run"))
    outcome = bench.run(nodes)["count.a"]
    assert (outcome.status, outcome.exit_class) == ("failed", ExitClass.CONFIG)
    assert "training.no_such_module" in outcome.error


def test_a_wrong_lock_file_stops_the_stage_before_it_works(tmp_path, switches):
    lock = tmp_path / "constraints.txt"
    lock.write_text("pydantic==0.0.1\n")
    with open_bench(tmp_path / "home", lock_file=str(lock)) as bench:
        outcome = bench.run(one(switches))["count.a"]
    assert outcome.exit_class == ExitClass.CONFIG
    assert "pydantic" in outcome.error
    assert work_log(switches) == []
