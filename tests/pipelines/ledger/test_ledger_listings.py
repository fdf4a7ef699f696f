"""Listings by page and lineage by step, on both databases, against the plain answers."""

from __future__ import annotations

import pytest
from ledger_scenario import Scenario, artifact
from sqlalchemy import insert

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import Ledger, LineageGraph, NodeOutcome, Status, new_id, schema
from pipelines.ledger.listings import RunFilter
from pipelines.ledger.neighbours import Direction
from pipelines.ledger.types import utc_now


def _runs(ledger: Ledger, count: int) -> list[str]:
    """Runs of two recipes, every third one failed; newest first."""
    made = []
    for n in range(count):
        run = ledger.begin_pipeline_run(f"recipe{n % 2}", {})
        if n % 3 == 0:
            ledger.finish_pipeline_run(run, 20, f"Disk {n} is 100% full")
        else:
            ledger.finish_pipeline_run(run, 0)
        made.append(run)
    return made[::-1]


def _ids(page) -> list[str]:  # type: ignore[no-untyped-def]
    return [r.pipeline_run_id for r in page.rows]


def test_pages_join_without_gap_or_overlap_in_both_directions(ledger: Ledger) -> None:
    made = _runs(ledger, 11)
    seen, page = [], ledger.list_runs(RunFilter(), limit=4)
    assert not page.newer
    while True:
        seen += _ids(page)
        if not page.older:
            break
        page = ledger.list_runs(RunFilter(), after=seen[-1], limit=4)
        assert page.newer
    assert seen == made
    back = ledger.list_runs(RunFilter(), before=made[8], limit=4)
    assert (_ids(back), back.newer, back.older) == (made[4:8], True, True)
    first = ledger.list_runs(RunFilter(), before=made[2], limit=4)
    assert (_ids(first), first.newer) == (made[:2], False)


def test_runs_that_began_at_the_same_moment_are_all_listed(ledger: Ledger) -> None:
    now = utc_now()
    rows = [
        {
            "pipeline_run_id": new_id(), "recipe": "same", "recipe_digest": "d", "resolved": {}, "trigger": "cli",
            "host": "h", "process": "p", "started_at": now, "status": "succeeded", "message": "",
        }
        for _ in range(9)
    ]  # fmt: skip
    with ledger._db.write() as session:
        session.execute(insert(schema.PipelineRun), rows)
    seen: list[str] = []
    while page := _ids(ledger.list_runs(RunFilter(), after=seen[-1] if seen else None, limit=4)):
        seen += page
    assert seen == sorted((str(r["pipeline_run_id"]) for r in rows), reverse=True)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (RunFilter(recipe="recipe1"), {1, 3, 5}),
        (RunFilter(recipe="recipe"), set()),
        (RunFilter(status=Status.FAILED), {0, 3}),
        (RunFilter(recipe="recipe1", status=Status.FAILED), {3}),
        (RunFilter(text="disk 3"), {3}),
        (RunFilter(text="RECIPE0"), {0, 2, 4}),
        (RunFilter(text="100%"), {0, 3}),
        (RunFilter(text="1%0"), set()),
        (RunFilter(text="recipe_"), set()),
        (RunFilter(since=utc_now().replace(year=2999)), set()),
    ],
)
def test_filters(ledger: Ledger, wanted: RunFilter, expected: set[int]) -> None:
    made = _runs(ledger, 6)[::-1]
    assert {made.index(i) for i in _ids(ledger.list_runs(wanted))} == expected


def test_a_listed_run_counts_its_stages_and_finds_its_work(scenario: Scenario, ledger: Ledger) -> None:
    run = ledger.begin_pipeline_run("r", {})
    made = scenario.run("a", {"dataset": artifact("a")}, pipeline_run_id=run, node_id="encode")
    ledger.record_node(run, "encode", stage="encode", how="ran", reason="first", run_id=made)
    ledger.record_node(run, "curate", stage="curate", how="hit", reason="same", run_id=made)
    ledger.record_node(run, "train", stage="train", how="running", reason="new")
    claim = ledger.claim("t", "tester")
    attempt = ledger.begin_attempt(
        claim, stage="train", work_dir="w", log_path="l", pipeline_run_id=run, node_id="train"
    )
    (listed,) = ledger.list_runs(RunFilter(text=run)).rows
    assert listed.outcomes == {NodeOutcome.RAN: 1, NodeOutcome.HIT: 1, NodeOutcome.RUNNING: 1}
    assert listed.duration_s is None
    assert [a.attempt_id for a in ledger.live_attempts([run])] == [attempt]
    assert [r.pipeline_run_id for r in ledger.listed_runs([run, "unknown"])] == [run]
    assert [(u.pipeline_run_id, u.node_id) for u in ledger.uses_of(made)] == [(run, "curate"), (run, "encode")]
    assert ledger.run_of_node_before("encode", run, "another") is None
    later = ledger.begin_pipeline_run("r", {})
    assert ledger.run_of_node_before("encode", later, "another") == made
    assert ledger.run_of_node_before("encode", later, made) is None


def test_artifacts_are_listed_by_kind_and_beginning(scenario: Scenario, ledger: Ledger) -> None:
    records = [artifact(f"a{n}", ArtifactKind.CLIPS if n % 2 else ArtifactKind.DATASET) for n in range(7)]
    for n, record in enumerate(records):
        scenario.run(f"k{n}", {"out": record})
    newest = [r.artifact_id for r in reversed(records)]
    first = ledger.list_artifacts(limit=5)
    last = first.rows[-1]
    rest = ledger.list_artifacts(after=(last.artifact_id, last.kind), limit=5)
    assert [r.artifact_id for r in (*first.rows, *rest.rows)] == newest
    assert (first.older, rest.older, rest.newer) == (True, False, True)
    assert {r.artifact_id for r in ledger.list_artifacts(kind="clips").rows} == {r.artifact_id for r in records[1::2]}
    assert [r.artifact_id for r in ledger.list_artifacts(text=newest[0][:12].upper()).rows] == newest[:1]
    assert ledger.kinds() == {"clips": 3, "dataset": 4}
    with pytest.raises(InputError):
        ledger.list_artifacts(after=("zzzz", "clips"))


def test_counts(scenario: Scenario, ledger: Ledger) -> None:
    _runs(ledger, 3)
    scenario.run("a", {"out": artifact("abc")})
    ledger.delivered("sink", 2)
    found = ledger.counts()
    assert (found.runs["failed"], found.runs["succeeded"], found.runs["running"]) == (1, 2, 0)
    assert (found.artifacts, found.artifact_bytes) == ({"dataset": 1}, {"dataset": 3})
    assert found.delivered == {"sink": 2}
    assert found.events == ledger.events(limit=None)[-1].seq


def test_steps_are_bounded_and_go_on_where_they_ended(scenario: Scenario, ledger: Ledger) -> None:
    root = artifact("root", ArtifactKind.WEIGHTS)
    scenario.run("root", {"weights": root})
    outputs = {f"out{n}": artifact(f"many{n}") for n in range(8)}
    readers = [scenario.run("wide", outputs, {"weights": root, "again": root})]
    readers += [scenario.run(f"k{n}", {"out": artifact(f"x{n}")}, {"weights": root}) for n in range(9)]
    readers.sort(reverse=True)
    step = ledger.lineage_step(root.artifact_id, Direction.DOWN, limit=4, far_limit=5)
    assert sorted(step.runs, reverse=True) == readers[:4]
    assert (step.total, step.shown, step.more) == (10, 4, 6)
    rest = ledger.lineage_step(root.artifact_id, Direction.DOWN, offset=4, limit=20, far_limit=5)
    assert sorted(rest.runs, reverse=True) == readers[4:]
    assert rest.more == 0
    wide = next(r for r in readers if ledger.run(r).stage_key == "wide")
    assert sum(e.run_id == wide and e.role == "output" for e in rest.edges) == 5
    assert (rest.degrees[wide].up, rest.degrees[wide].down) == (2, 8)
    assert rest.degrees[root.artifact_id].down == 10
    ports = ledger.lineage_step(wide, Direction.DOWN, offset=5, limit=5)
    assert (len(ports.artifacts), ports.total, ports.more) == (3, 8, 0)
    with pytest.raises(InputError):
        ledger.lineage_step("zzzz", Direction.UP)


def test_steps_tell_reuse_and_what_recipes_call_a_run(scenario: Scenario, ledger: Ledger) -> None:
    first = ledger.begin_pipeline_run("r", {})
    made = scenario.run("a", {"dataset": artifact("a")}, pipeline_run_id=first, node_id="encode.main")
    for _ in range(5):
        later = ledger.begin_pipeline_run("r", {})
        ledger.record_node(later, "encode.main", stage="encode", how="hit", reason="same key", run_id=made)
    step = ledger.lineage_step(artifact("a").artifact_id, Direction.UP)
    assert step.names == {made: "encode.main"}
    assert step.reused == {made: 5}
    assert len(step.reuses) == 3
    assert step.reuses[0].pipeline_run_id == later


@pytest.mark.parametrize("direction", [Direction.UP, Direction.DOWN])
def test_steps_together_are_the_whole_lineage(scenario: Scenario, ledger: Ledger, direction: Direction) -> None:
    """Walking step by step from one end finds exactly what the recursive query finds."""
    layers = [[artifact(f"{level}.{n}") for n in range(3)] for level in range(5)]
    for level in range(5):
        for n in range(3):
            inputs = {f"in{m}": layers[level - 1][m] for m in range(3) if level and (level + n + m) % 3}
            scenario.run(f"{level}.{n}", {"out": layers[level][n]}, inputs)
    root = layers[-1][0] if direction is Direction.UP else layers[0][0]
    whole: LineageGraph = getattr(ledger, f"lineage_{direction}")(root.artifact_id)
    artifacts, runs, edges = set(), set(), set()
    waiting = [root.artifact_id]
    while waiting:
        node = waiting.pop()
        if node in artifacts:
            continue
        artifacts.add(node)
        offset = 0
        while True:
            step = ledger.lineage_step(node, direction, offset=offset, limit=2)
            runs |= set(step.runs)
            edges |= set(step.edges)
            waiting += list(step.artifacts)
            offset += step.shown
            if not step.more:
                break
    assert artifacts == set(whole.artifacts)
    assert runs == set(whole.runs)
    assert edges == set(whole.edges)
