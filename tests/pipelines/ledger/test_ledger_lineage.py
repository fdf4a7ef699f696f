"""Lineage up and down: exact edges, random graphs against a plain search, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_scenario import Scenario, artifact
from sqlalchemy import insert, text

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import Ledger, new_id, schema
from pipelines.ledger.types import utc_now


def test_a_diamond_and_its_sides(scenario: Scenario, ledger: Ledger) -> None:
    """source -> clips -> dataset -> checkpoint (also from clips); a second checkpoint and a stranger beside."""
    source, clips = artifact("source", ArtifactKind.SOURCE), artifact("clips", ArtifactKind.CLIPS)
    dataset, a, b = artifact("dataset"), artifact("a", ArtifactKind.CHECKPOINT), artifact("b", ArtifactKind.CHECKPOINT)
    s = scenario.run("s", {"source": source}, stage="source")
    c = scenario.run("c", {"clips": clips}, {"source.0": source}, stage="curate")
    d = scenario.run("d", {"dataset": dataset}, {"clips": clips, "source.0": source}, stage="encode")
    t = scenario.run("t", {"checkpoint": a}, {"dataset": dataset}, stage="train")
    scenario.run("u", {"checkpoint": b}, {"dataset": dataset}, stage="train")
    scenario.run("z", {"source": artifact("stranger")}, stage="source")

    up = ledger.lineage_up(a.artifact_id)
    assert up.root == a.artifact_id
    assert {x.artifact_id: x.kind for x in up.artifacts.values()} == {
        x.artifact_id: x.kind for x in (source, clips, dataset, a)
    }
    assert {r.run_id: r.stage for r in up.runs.values()} == {s: "source", c: "curate", d: "encode", t: "train"}
    assert {(e.role, e.run_id, e.artifact_id, e.name) for e in up.edges} == {
        ("output", s, source.artifact_id, "source"),
        ("input", c, source.artifact_id, "source.0"),
        ("output", c, clips.artifact_id, "clips"),
        ("input", d, clips.artifact_id, "clips"),
        ("input", d, source.artifact_id, "source.0"),
        ("output", d, dataset.artifact_id, "dataset"),
        ("input", t, dataset.artifact_id, "dataset"),
        ("output", t, a.artifact_id, "checkpoint"),
    }
    assert [(e.name, n) for e, n in up.neighbours(a.artifact_id)] == [("checkpoint", t)]
    assert [(e.name, n) for e, n in up.neighbours(t)] == [("dataset", dataset.artifact_id)]

    down = ledger.lineage_down(clips.artifact_id)
    assert set(down.artifacts) == {x.artifact_id for x in (clips, dataset, a, b)}
    assert {r.stage for r in down.runs.values()} == {"encode", "train"}
    assert all(e.artifact_id != source.artifact_id for e in down.edges), "what lies upstream is not walked"
    assert [n for _, n in down.neighbours(clips.artifact_id)] == [d]
    assert [n for _, n in down.neighbours(d)] == [dataset.artifact_id]
    assert down.to_json()["artifacts"][0] == {"artifact_id": clips.artifact_id, "kind": "clips", "size_bytes": 5}


def test_an_unknown_artifact_has_no_lineage(ledger: Ledger) -> None:
    for walk in (ledger.lineage_up, ledger.lineage_down):
        with pytest.raises(InputError, match="no such artifact: 'nope'"):
            walk("nope")


Graph = Sequence[tuple[Sequence[int], Sequence[int]]]  # runs in order: (inputs, outputs) as artifact numbers


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Runs that read artifacts made before, and make new ones or (again) old ones."""
    runs: list[tuple[list[int], list[int]]] = []
    made = 0
    for _ in range(draw(st.integers(1, 12))):
        inputs = draw(st.lists(st.integers(0, made - 1), max_size=3, unique=True)) if made else []
        outputs = [made + i for i in range(draw(st.integers(1, 2)))]
        made = outputs[-1] + 1
        if inputs and draw(st.integers(0, 4)) == 0:
            outputs.append(draw(st.integers(max(inputs), made - 2)))  # the same bytes from another run
        runs.append((inputs, sorted(set(outputs) - set(inputs))))
    return runs


def reachable(runs: Graph, root: int, direction: str) -> set[int]:
    found, waiting = {root}, [root]
    while waiting:
        at = waiting.pop()
        for inputs, outputs in runs:
            near, far = (outputs, inputs) if direction == "up" else (inputs, outputs)
            new = set(far) - found if at in near else set()
            found |= new
            waiting += new
    return found


def write_graph(ledger: Ledger, prefix: str, runs: Graph) -> None:
    """Insert runs in bulk, without their events: only lineage is looked at."""
    now = utc_now()
    artifacts = sorted({n for inputs, outputs in runs for n in (*inputs, *outputs)})
    ids = [f"{prefix}-{new_id()}" for _ in runs]
    with ledger._db.write() as session:
        session.execute(
            insert(schema.Artifact),
            [
                {"artifact_id": f"{prefix}-{n}", "kind": "dataset", "size_bytes": n, "files": 1, "summary": {},
                 "recorded_at": now, "uri": ""}
                for n in artifacts
            ],
        )  # fmt: skip
        session.execute(
            insert(schema.Attempt),
            [
                {"attempt_id": i, "stage_key": i, "stage": "s", "number": 1, "fence": 1, "launcher": "l", "host": "h",
                 "work_dir": "w", "log_path": "l", "started_at": now, "status": "succeeded", "message": "",
                 "metrics": {}}
                for i in ids
            ],
        )  # fmt: skip
        session.execute(
            insert(schema.StageRun),
            [
                {"run_id": i, "stage_key": i, "generation": 1, "stage": "s", "stage_version": 1, "key_record": {},
                 "config": {}, "config_digest": "", "code_digest": "", "environment": {}, "seed": "0",
                 "exactness": "bit-exact", "metrics": {}, "attempt_id": i, "committed_at": now}
                for i in ids
            ],
        )  # fmt: skip
        for table, side in ((schema.RunInput, 0), (schema.RunOutput, 1)):
            ports = [
                {"run_id": i, "name": f"p.{n}", "artifact_id": f"{prefix}-{n}", "kind": "dataset"}
                for i, run in zip(ids, runs, strict=True)
                for n in run[side]
            ]
            if ports:
                session.execute(insert(table), ports)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(runs=graphs(), data=st.data())
def test_lineage_is_reachability(ledger: Ledger, runs: Graph, data: st.DataObject) -> None:
    prefix = new_id()
    write_graph(ledger, prefix, runs)
    root = data.draw(st.sampled_from(sorted({n for run in runs for side in run for n in side})))
    for direction, walk in (("up", ledger.lineage_up), ("down", ledger.lineage_down)):
        graph = walk(f"{prefix}-{root}")
        wanted = reachable(runs, root, direction)
        assert set(graph.artifacts) == {f"{prefix}-{n}" for n in wanted}
        near = 1 if direction == "up" else 0
        walked = [run for run in runs if wanted & set(run[near])]
        assert len(graph.runs) == len(walked)
        edges = sum(len(wanted & set(side)) for run in walked for side in run)
        assert len(graph.edges) == edges
        assert {e.run_id for e in graph.edges} <= set(graph.runs)
        assert {e.artifact_id for e in graph.edges} <= set(graph.artifacts)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """5,000 artifacts below one: a source, 10 clip tables, 40 datasets each, chains of checkpoints below."""
    ledger = Ledger.open(str(tmp_path_factory.mktemp("large") / "ledger.sqlite"))
    runs: list[tuple[list[int], list[int]]] = [([], [0])]
    parents = [0]
    while len(runs) < 5001:
        parent = parents[(len(runs) * 7919) % len(parents)]
        runs.append(([parent], [len(runs)]))
        parents.append(len(runs) - 1)
    write_graph(ledger, "x", runs)
    return ledger


def test_lineage_of_5000_artifacts_is_whole(large: Ledger) -> None:
    """How long it takes stands in tests/benchmarks/bench_ledger.py."""
    graph = large.lineage_down("x-0")
    assert (len(graph.artifacts), len(graph.runs), len(graph.edges)) == (5001, 5000, 10_000)


def test_one_path_up_leaves_the_rest_out(large: Ledger) -> None:
    graph = large.lineage_up("x-5000")
    assert len(graph.artifacts) == len(graph.runs) > 1


def test_find_run_is_indexed(large: Ledger, tmp_path: Path) -> None:
    with large._db.read() as session:
        plan = session.execute(
            text("EXPLAIN QUERY PLAN SELECT * FROM stage_run WHERE stage_key = 'k' ORDER BY generation DESC LIMIT 1")
        ).all()
    assert "SEARCH stage_run USING INDEX" in str(plan)
    assert "TEMP B-TREE" not in str(plan)
