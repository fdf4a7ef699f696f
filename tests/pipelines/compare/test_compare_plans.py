"""A plan against an earlier run, a channel and a checkpoint: what differs, stage by stage."""

import json
from dataclasses import replace

import pytest
from bench import open_bench
from stages_for_faults import COUNT, CountConfig, TotalConfig, pipeline

from m4v.core.errors import InputError
from pipelines.compare.plans import Standing, compare_plan
from pipelines.lookup import Lookup
from pipelines.plan import make_plan
from pipelines.spec import StageNode


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with open_bench(tmp_path_factory.mktemp("plan-diff") / "home") as opened:
        run = opened.new_run(pipeline())
        opened.first, opened.outcomes = run.id, run.run_all()
        yield opened


def against(bench, nodes, reference):
    made = make_plan("bench", nodes, Lookup(bench.ledger, bench.launcher))
    return compare_plan(bench.ledger, made, nodes, reference)


def test_the_same_recipe_against_its_own_run(bench):
    found = against(bench, pipeline(), bench.first)
    assert [s.standing for s in found.stages] == [Standing.SAME] * 3
    assert [s.run_id for s in found.stages] == [o.run_id for o in bench.outcomes.values()]
    assert found.counts()["same"] == 3
    assert (found.reference.kind, found.reference.recipe) == ("pipeline run", "bench")


def test_a_changed_stage_and_what_it_leaves_open(bench):
    found = against(bench, pipeline(second=CountConfig(label="b", factor=7)), bench.first)
    a, b, total = found.stages
    assert (a.standing, b.standing, total.standing) == (Standing.SAME, Standing.DIFFERS, Standing.UNSETTLED)
    assert [(c.field, c.before, c.after) for c in b.changes] == [("factor", 2, 7)]
    assert total.unsettled == (("part.1", "count.b"),)
    assert total.changes == ()
    assert "inputs come from stages that run: count.b" in total.reason


def test_an_own_change_behind_an_open_input(bench):
    nodes = pipeline(second=CountConfig(label="b", factor=7), total=TotalConfig(round_to=3))
    total = against(bench, nodes, bench.first).stages[2]
    assert (total.standing, [c.field for c in total.changes]) == (Standing.DIFFERS, ["round_to"])


def test_an_earlier_run_is_the_reference_not_the_latest(bench):
    """What a plan alone compares with is the newest run; the diff answers for the one that is named."""
    later = pipeline(second=CountConfig(label="b", factor=11))
    bench.run(later)
    assert [s.standing for s in against(bench, later, bench.first).stages] == [
        Standing.SAME, Standing.DIFFERS, Standing.DIFFERS
    ]  # fmt: skip
    third = against(bench, later, bench.first).stages[2]
    assert [c.field for c in third.changes] == ["part.1"], "its input is known: the stage before it is a hit"


def test_stages_that_only_one_side_has(bench):
    new = StageNode("count.c", COUNT, CountConfig(label="c"))
    found = against(bench, [*pipeline()[:1], new], bench.first)
    assert [(s.node_id, s.standing) for s in found.stages] == [
        ("count.a", Standing.SAME), ("count.c", Standing.ONLY_NOW),
        ("count.b", Standing.ONLY_THERE), ("total", Standing.ONLY_THERE),
    ]  # fmt: skip
    assert (found.stages[1].run_id, found.stages[2].status) == (None, None)


def test_a_channel_stands_for_what_its_checkpoint_was_made_with(bench):
    artifact = bench.outcomes["total"].outputs["sum"].artifact_id
    bench.ledger.move_channel("production", artifact, expected=None, moved_by="ada", reason="best")
    nodes = pipeline(seed=4)
    found = against(bench, nodes, "production")
    assert (found.reference.kind, found.reference.artifact_id) == ("channel", artifact)
    assert {s.node_id: s.run_id for s in found.stages} == {n: o.run_id for n, o in bench.outcomes.items()}
    assert found.stages[0].reason == "seed 0 -> 4"
    assert against(bench, nodes, artifact).stages == found.stages, "a checkpoint's id says the same"


def test_json_and_unknown_references(bench):
    data = json.loads(json.dumps(against(bench, pipeline(seed=4), bench.first).to_json()))
    assert data["schema_version"] == 1
    assert data["stages"][0]["changes"][0]["words"] == "seed 0 -> 4"
    assert data["counts"]["differs"] == 3
    with pytest.raises(InputError, match="neither a channel nor a run"):
        against(bench, pipeline(), "stagging")
    with pytest.raises(InputError, match="a pipeline run or a channel"):
        against(bench, pipeline(), bench.outcomes["total"].run_id)


def test_a_pinned_or_changed_declaration_counts(bench):
    nodes = pipeline()
    nodes[0] = replace(nodes[0], spec=replace(COUNT, version=2))
    assert against(bench, nodes, bench.first).stages[0].reason == "stage version 1 -> 2"
