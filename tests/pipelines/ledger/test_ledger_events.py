"""The hash-chained history: tampering shows, projections rebuild, writers cannot fork it."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ledger_scenario import Scenario, artifact, kill_self, new_run, start_child, wait_child
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import DataIntegrityError, ExitClass, InputError
from m4v.core.stage import Progress
from pipelines.ledger import ChannelMoved, Ledger, Status
from pipelines.ledger.chain import PROJECTIONS
from pipelines.ledger.schema import GENESIS


@pytest.fixture
def history(scenario: Scenario) -> Scenario:
    """A ledger in which every kind of row stands."""
    ledger = scenario.ledger
    pipeline = ledger.begin_pipeline_run("demo", {"seed": 1})
    clips, dataset = artifact("clips", ArtifactKind.CLIPS), artifact("dataset")
    scenario.run("k1", {"clips": clips}, stage="curate", pipeline_run_id=pipeline, node_id="curate")
    run_id = scenario.run("k2", {"dataset": dataset}, {"clips": clips}, metrics={"psnr": 30.25})
    ledger.record_node(pipeline, "encode", stage="encode", how="hit", reason="equal key", run_id=run_id)
    ledger.finish_pipeline_run(pipeline, ExitClass.GATE_REFUSED, "motion below threshold")
    failed = ledger.begin_attempt(ledger.claim("k3", "me"), stage="train", work_dir="w", log_path="l")
    ledger.launched(failed, pid=12)
    ledger.heartbeat(failed, Progress(done=1))
    ledger.finish_attempt(failed, 30, "node lost")
    ledger.move_channel("prod", dataset.artifact_id, expected=None, moved_by="ada", reason="first")
    ledger.open_takedown(
        {"clip_ids": ["c1"]}, reason="licence", requested_by="ada", policy={}, blocks={}, clips=[], artifacts=[]
    )
    return scenario


def test_an_untouched_ledger_verifies(history: Scenario) -> None:
    ledger = history.ledger
    events = ledger.events(limit=None)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert events[0].prev_hash == GENESIS
    assert all(later.prev_hash == earlier.hash for earlier, later in itertools.pairwise(events))
    report = ledger.verify_chain()
    assert (report.ok, report.problems, report.stale) == (True, (), ())
    assert (report.events, report.head) == (len(events), events[-1].hash)
    assert ledger.rebuild() == 0


TAMPERINGS = {
    "payload": ("UPDATE event SET payload = '{}' WHERE seq = 4", r"event 4 \(.*\) was changed"),
    "time": ("UPDATE event SET at = '2020-01-01T00:00:00.000000Z' WHERE seq = 2", "event 2"),
    "hash": (f"UPDATE event SET hash = '{'f' * 64}' WHERE seq = 3", r"event 3 .*was changed"),
    "gap": ("DELETE FROM event WHERE seq = 5", "events 5 to 5 are missing"),
    "tail": ("DELETE FROM event WHERE seq > 6", "chain ends at event 6, its head says"),
    "run": ("UPDATE stage_run SET seed = '8' WHERE stage_key = 'k2'", "row stage_run .* was changed"),
    "artifact": ("UPDATE artifact SET size_bytes = 1 WHERE kind = 'clips'", "row artifact .* clips was changed"),
    "attempt": ("UPDATE attempt SET host = 'elsewhere' WHERE stage_key = 'k3'", "row attempt .* was changed"),
    "input": ("DELETE FROM run_input", "row run_input .* clips is missing"),
    "output": (
        "UPDATE run_output SET artifact_id = (SELECT artifact_id FROM artifact WHERE kind = 'clips'), kind = 'clips'"
        " WHERE name = 'dataset'",
        "row run_output .* dataset was changed",
    ),
    "extra output": (
        "INSERT INTO run_output SELECT run_id, 'more', artifact_id, kind FROM run_output WHERE name = 'clips'",
        "row run_output .* more has no event",
    ),
    "reuse": ("UPDATE reuse SET reason = 'because'", "row reuse .* was changed"),
    "channel": ("UPDATE channel SET moved_by = 'eve'", "row channel prod 1 was changed"),
    "takedown": ("UPDATE takedown SET reason = 'other'", "row takedown .* was changed"),
    "takedown step": ("DELETE FROM takedown_step", "row takedown_step .* is missing"),
    "recipe": ("UPDATE pipeline_run SET recipe = 'micro'", "row pipeline_run .* was changed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_tampering_shows(history: Scenario, kind: str) -> None:
    statement, message = TAMPERINGS[kind]
    history.sql(statement, guards=False)
    report = history.ledger.verify_chain()
    assert not report.ok
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(report.problems)


@pytest.mark.parametrize(
    "table",
    [
        "event",
        "stage_run",
        "run_input",
        "run_output",
        "reuse",
        "channel",
        "takedown",
        "artifact",
        "attempt",
        "pipeline_run",
    ],
)
def test_history_cannot_be_deleted_or_rewritten(history: Scenario, table: str) -> None:
    columns = {
        "event": "payload", "stage_run": "config", "run_input": "kind", "run_output": "name", "reuse": "reason",
        "channel": "artifact_id", "takedown": "reason", "artifact": "summary", "attempt": "stage_key",
        "pipeline_run": "resolved",
    }  # fmt: skip
    for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {columns[table]} = {columns[table]}"):
        with pytest.raises(DBAPIError, match=f"{table} is append-only"):
            history.sql(statement)
    assert history.ledger.verify_chain().ok


def test_projections_are_rebuilt_from_events(history: Scenario) -> None:
    ledger = history.ledger
    before = (ledger.attempts(limit=None), ledger.pipeline_runs(), ledger.artifacts())
    history.sql(
        "UPDATE attempt SET status = 'running', metrics = '{}', run_id = NULL, pid = NULL",
        "UPDATE pipeline_run SET status = 'succeeded', message = ''",
        "UPDATE artifact SET uri = 'nowhere' WHERE kind = 'clips'",
    )
    report = ledger.verify_chain()
    assert report.ok
    assert len(report.stale) == 5
    assert ledger.rebuild() == 5
    assert (ledger.attempts(limit=None), ledger.pipeline_runs(), ledger.artifacts()) == before
    history.sql("DELETE FROM pipeline_run_node")
    nodes = ledger.pipeline_runs()[0].pipeline_run_id
    assert ledger.nodes(nodes) == []
    assert ledger.rebuild() == 1
    assert [n.node_id for n in ledger.nodes(nodes)] == ["encode"]
    assert ledger.verify_chain().stale == ()


def test_every_column_is_guarded_or_a_projection(history: Scenario) -> None:
    from importlib import import_module

    first = import_module("pipelines.ledger.migrations.versions.0001_first_schema")
    later = import_module("pipelines.ledger.migrations.versions.0004_approvals_and_pins")
    guarded = {**first.GUARDED, **later.GUARDED}
    for table, columns in PROJECTIONS.items():
        name = table.__tablename__
        assert {*guarded[name], *later.ADDED.get(name, ())} == set(columns)


def test_many_writers_make_one_chain(scenario: Scenario, ledger: Ledger, tmp_path: Path) -> None:
    writers, each = 4, 15
    start = tmp_path / "start"

    def write(number: int) -> None:
        with Ledger.open(scenario.url) as mine:
            while not start.exists():
                time.sleep(0.001)
            for i in range(each):
                mine.begin_pipeline_run(f"recipe-{number}", {"i": i})

    pids = [start_child(lambda n=n: write(n)) for n in range(writers)]  # type: ignore[misc]
    start.touch()
    assert [wait_child(p) for p in pids] == [0] * writers
    report = ledger.verify_chain()
    assert (report.ok, report.events) == (True, writers * each)
    for number in range(writers):  # each writer's own order is kept
        mine = [r.resolved["i"] for r in ledger.pipeline_runs(recipe=f"recipe-{number}", limit=None)]
        assert mine == list(range(each))[::-1]


def test_threads_may_share_a_ledger(ledger: Ledger) -> None:
    def work(number: int) -> None:
        claim = ledger.claim(f"key-{number}", "thread")
        attempt = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
        for done in range(5):
            ledger.heartbeat(attempt, Progress(done=done))
            ledger.renew(claim)
        ledger.commit_run(claim, attempt, new_run(f"key-{number}"), [], {"dataset": artifact(f"d{number}")})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert len(ledger.runs()) == 12
    assert {a.status for a in ledger.attempts()} == {Status.SUCCEEDED}
    assert ledger.verify_chain().ok


@pytest.mark.parametrize("statement", [1, 4, 7, 10, 13, 16, 19])
def test_a_kill_at_any_statement_of_a_commit_leaves_all_or_nothing(
    scenario: Scenario, ledger: Ledger, statement: int
) -> None:
    """The child dies before its n-th statement inside the transaction; running again completes."""

    def commit_and_die() -> None:
        with Ledger.open(scenario.url) as mine:
            claim = mine.claim("key", "doomed", lease_s=3600)
            attempt = mine.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
            left = statement

            def count(*_: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    kill_self()

            event.listen(mine._db.engine, "before_cursor_execute", count)
            mine.commit_run(claim, attempt, new_run("key"), [], {"dataset": artifact("d"), "more": artifact("m")})

    code = wait_child(start_child(commit_and_die))
    assert code == -9, "the commit has fewer statements than the test thinks"
    assert ledger.verify_chain().ok
    assert ledger.find_run("key") is None
    assert ledger.artifacts() == []
    assert ledger.attempts()[0].status == Status.RUNNING
    run_id = scenario.run("key", {"dataset": artifact("d"), "more": artifact("m")})
    assert ledger.run(run_id).generation == 1
    assert [a.status for a in ledger.attempts()] == [Status.SUCCEEDED, Status.LOST]
    report = ledger.verify_chain()
    assert (report.ok, report.stale) == (True, ())


def test_a_sink_gets_every_event_once_it_confirms(history: Scenario) -> None:
    ledger = history.ledger
    everything = ledger.events(limit=None)
    first = ledger.undelivered("openlineage", limit=5)
    assert first == everything[:5]
    assert ledger.undelivered("openlineage", limit=5) == first
    ledger.delivered("openlineage", first[-1].seq)
    ledger.delivered("openlineage", 2)  # a late confirmation does not move it back
    assert ledger.undelivered("openlineage", limit=1000) == everything[5:]
    assert ledger.undelivered("mlflow", limit=1) == everything[:1]


def test_channels_move_by_compare_and_swap(scenario: Scenario, ledger: Ledger) -> None:
    a, b = artifact("a", ArtifactKind.CHECKPOINT), artifact("b", ArtifactKind.CHECKPOINT)
    scenario.run("k1", {"checkpoint": a})
    scenario.run("k2", {"checkpoint": b})
    assert ledger.channel("prod") is None
    ledger.move_channel("prod", a.artifact_id, expected=None, moved_by="ada", reason="first")
    with pytest.raises(ChannelMoved, match="channel prod names another artifact"):
        ledger.move_channel("prod", b.artifact_id, expected=None, moved_by="bob", reason="race")
    ledger.move_channel("prod", b.artifact_id, expected=a.artifact_id, moved_by="bob", reason="better")
    ledger.move_channel("prod", a.artifact_id, expected=b.artifact_id, moved_by="ada", reason="rollback")
    now = ledger.channel("prod")
    assert now is not None
    assert (now.artifact_id, now.seq, now.kind, now.moved_by) == (a.artifact_id, 3, ArtifactKind.CHECKPOINT, "ada")
    assert [(c.seq, c.reason) for c in ledger.channel_history("prod")] == [(3, "rollback"), (2, "better"), (1, "first")]
    assert ledger.channel_history("staging") == []
    with pytest.raises(InputError, match="no such artifact: 'nope'"):
        ledger.move_channel("staging", "nope", expected=None, moved_by="a", reason="r")


def test_takedowns_are_kept(history: Scenario) -> None:
    (takedown,) = history.ledger.takedowns()
    assert (takedown.selector, takedown.reason, takedown.requested_by) == ({"clip_ids": ["c1"]}, "licence", "ada")


@pytest.mark.parametrize("table", ["event", "stage_run"])
def test_rows_that_do_not_parse_are_reported(history: Scenario, table: str) -> None:
    column, where = {"event": ("payload", "seq = 3"), "stage_run": ("config", "stage_key = 'k2'")}[table]
    history.sql(f"UPDATE {table} SET {column} = '{{not json' WHERE {where}", guards=False)
    report = history.ledger.verify_chain()
    assert any("cannot be read" in problem for problem in report.problems)


def test_a_broken_chain_is_no_ground_to_rebuild_on(history: Scenario) -> None:
    history.sql("UPDATE event SET payload = '{}' WHERE seq = 4", guards=False)
    with pytest.raises(DataIntegrityError, match="event chain does not verify: 'event 4"):
        history.ledger.rebuild()
