"""The plan: what runs, what is a hit, what waits and for whom, with reasons; held against what a run then does."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from bench import open_bench
from sqlalchemy import event
from stages_for_faults import COUNT, TOTAL, CountConfig, TotalConfig, pipeline

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import ConfigError
from m4v.core.stage import InputRef, OutputResult, Resources
from pipelines.keys import key_record
from pipelines.ledger import Ledger, NewRun
from pipelines.lookup import Lookup
from pipelines.plan import Expectation, Plan, PlanStatus, PlanStep, make_plan
from pipelines.spec import InputSpec, StageNode, StageSpec, topological_order
from pipelines.store import ArtifactStore
from pipelines.workspace import Workspace

STATEMENTS_A_STAGE = 12  # asked of the ledger by a plan; its seconds are in tests/benchmarks/bench_plan.py


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A home in which the small pipeline has run once."""
    with open_bench(tmp_path_factory.mktemp("plan") / "home") as opened:
        opened.run(pipeline())
        yield opened


def plan(bench, nodes) -> Plan:
    return make_plan("bench", nodes, Lookup(bench.ledger, bench.launcher))


def statuses(made: Plan) -> list[str]:
    return [str(s.status) for s in made.steps]


def test_everything_is_a_first_run_in_an_empty_home(tmp_path):
    with open_bench(tmp_path / "home") as empty:
        made = plan(empty, pipeline())
    assert statuses(made) == ["run", "run", "blocked-on"]
    assert made.steps[0].reason == "first run of count.a in bench"
    assert made.steps[2].reason == "waits for count.a, count.b; will run: first run of total in bench"
    assert made.steps[2].waits_for == ("count.a", "count.b")
    assert made.unknown == ["count.a", "count.b", "total"]
    assert made.estimate_s == 0
    assert made.counts() == {"hit": 0, "run": 3, "hit-if-unchanged": 0}


def test_a_repeated_run_is_all_hits(bench):
    made = plan(bench, pipeline())
    assert made.all_hits
    assert all(s.run_id and s.stage_key and s.estimate_s == 0 for s in made.steps)
    assert "outputs verified (sizes)" in made.steps[0].reason
    assert made.steps[2].outputs["sum"].size_bytes == made.steps[2].size_bytes == 2


def test_a_changed_field_is_named_and_what_follows_waits(bench):
    made = plan(bench, pipeline(first=CountConfig(label="a", factor=7)))
    first, second, total = made.steps
    assert (first.status, first.reason) == (PlanStatus.RUN, "config factor: 1 -> 7")
    assert [(c.component, c.field, c.old, c.new) for c in first.changes] == [("config", "factor", 1, 7)]
    assert second.status is PlanStatus.HIT
    assert (total.status, total.expectation) == (PlanStatus.BLOCKED, Expectation.HIT_IF_UNCHANGED)
    assert total.reason == "hit if output of count.a is unchanged"
    assert first.estimate_s > 0
    assert made.estimate_s == first.estimate_s


def test_a_waiting_stage_with_a_change_of_its_own_will_run(bench):
    made = plan(bench, pipeline(first=CountConfig(label="a", factor=7), total=TotalConfig(round_to=5)))
    total = made.steps[2]
    assert (total.status, total.expectation) == (PlanStatus.BLOCKED, Expectation.RUN)
    assert total.reason == "waits for count.a; will run: config round_to: 1 -> 5"


def test_a_changed_seed_and_version(bench):
    nodes = pipeline(seed=4)
    nodes[1] = replace(nodes[1], spec=replace(COUNT, version=2))
    reasons = [s.reason for s in plan(bench, nodes).steps]
    assert reasons[0] == "seed 0 -> 4"
    assert reasons[1] == "seed 0 -> 4; stage version 1 -> 2"


def test_a_new_input_is_named(bench):
    nodes = pipeline()
    inputs = {**nodes[2].inputs, "part.2": ("count.a", "lines")}
    nodes[2] = replace(nodes[2], inputs=inputs)
    assert plan(bench, nodes).steps[2].reason.startswith("input part.2 added (")


def test_a_live_claim_is_told(bench):
    changed = pipeline(first=CountConfig(label="a", factor=9))
    key = plan(bench, changed).steps[0].stage_key
    claim = bench.ledger.claim(key, "somebody", 30)
    try:
        assert "being run now by somebody" in plan(bench, changed).steps[0].reason
    finally:
        bench.ledger.release(claim)


def test_deep_plan_finds_a_changed_byte(tmp_path):
    with open_bench(tmp_path / "home") as bench:
        outcome = bench.run(pipeline()[:1])["count.a"]
        file = Path(outcome.outputs["lines"].uri) / "lines.txt"
        file.write_bytes(file.read_bytes().replace(b"a", b"z"))
        assert plan(bench, pipeline()[:1]).all_hits
        deep = make_plan("bench", pipeline()[:1], Lookup(bench.ledger, bench.launcher, deep=True)).steps[0]
    assert deep.status is PlanStatus.RUN
    assert "bytes differ from the manifest" in deep.reason


def test_the_plan_says_what_the_run_does(tmp_path):
    with open_bench(tmp_path / "home") as bench:
        bench.run(pipeline())
        nodes = pipeline(second=CountConfig(label="b", factor=3))
        made = plan(bench, nodes)
        outcomes = bench.run(nodes)
    assert [s.status for s in made.steps] == ["hit", "run", "blocked-on"]
    assert [o.status for o in outcomes.values()] == ["hit", "ran", "ran"]
    assert made.steps[1].reason == outcomes["count.b"].reason
    assert made.steps[1].stage_key == outcomes["count.b"].stage_key


def test_json_and_markdown(bench):
    made = plan(bench, pipeline(first=CountConfig(label="a|b")))
    data = json.loads(json.dumps(made.to_json()))
    assert data["schema_version"] == 1
    assert data["counts"] == {"hit": 1, "run": 1, "hit-if-unchanged": 1}
    assert data["steps"][0]["changes"][0]["words"] == "config label: a -> a|b"
    assert "| count.a | run | config label: a -> a\\|b |" in made.to_markdown()


def test_gpu_hours_and_bytes_by_step_and_in_all():
    step = PlanStep("t", "train", PlanStatus.RUN, Expectation.RUN, "", estimate_s=1800.0, device="cuda", ranks=4)
    step = replace(step, size_bytes=1000)
    on_cpu, unknown = replace(step, node_id="c", device="cpu"), replace(step, node_id="u", estimate_s=None)
    hit = replace(step, node_id="h", status=PlanStatus.HIT, expectation=Expectation.HIT)
    made = Plan("r", (step, on_cpu, unknown, hit))
    assert [s.gpu_hours for s in made.steps] == [2.0, 0.0, None, 2.0]
    assert (made.gpu_hours, made.size_bytes, made.unknown) == (2.0, 3000, ["u"])
    data = made.to_json()
    assert (data["gpu_hours"], data["size_bytes"], data["steps"][0]["gpu_hours"]) == (2.0, 3000, 2.0)
    assert "| t | run |  | 1800.0 s | 2 | 1,000 |" in made.to_markdown()
    assert "2 GPU-hours, 3,000 bytes; no history for u." in made.to_markdown()


def test_without_any_history_no_sum_is_told():
    step = PlanStep("t", "train", PlanStatus.RUN, Expectation.RUN, "")
    fresh = Plan("r", (step, replace(step, node_id="u"))).to_markdown()
    assert "2 run" in fresh
    assert "no stage that will run has a history to estimate from." in fresh
    assert "of work" not in fresh
    hits = Plan("r", (replace(step, status=PlanStatus.HIT, expectation=Expectation.HIT),)).to_markdown()
    assert "about 0 s of work" in hits


def test_a_plan_imports_neither_torch_nor_prefect(bench):
    script = textwrap.dedent(
        f"""
        import sys
        from bench import Bench
        from stages_for_faults import pipeline
        from pipelines.lookup import Lookup
        from pipelines.plan import make_plan
        from pathlib import Path
        bench = Bench(Path({str(bench.workspace.home)!r}))
        assert make_plan("bench", pipeline(), Lookup(bench.ledger, bench.launcher)).all_hits
        heavy = {{"torch", "prefect", "ray", "deepspeed", "transformers", "fastapi"}} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commit(
    bench, store: ArtifactStore, pipeline_run: str, node: StageNode, inputs: dict[str, InputRef], number: int
) -> InputRef:
    """Record a run of `node` without a process: a chain of a hundred stages for the timing below."""
    staging = bench.workspace.home / "made" / str(number)
    staging.mkdir(parents=True)
    (staging / "lines.txt").write_text(f"{number}\n")
    manifest = build_manifest(staging, ArtifactKind.SOURCE, {})
    write_manifest(staging, manifest)
    output = OutputResult(
        name="lines", kind=ArtifactKind.SOURCE, artifact_id=manifest.artifact_id, staging=str(staging),
        size_bytes=manifest.size_bytes, files=1,
    )  # fmt: skip
    record = key_record(node, {n: r.artifact_id for n, r in inputs.items()}, bench.launcher.target(node.resources))
    claim = bench.ledger.claim(record.stage_key, "test")
    attempt = bench.ledger.begin_attempt(claim, stage=node.spec.name, work_dir="w", log_path="l")
    run = NewRun(
        stage=node.spec.name, stage_version=1, stage_key=record.stage_key, key_record=record.canonical(),
        config=record.config, code_digest=record.code_digest, seed=node.seed,
    )  # fmt: skip
    published = store.publish(output)
    run_id = bench.ledger.commit_run(claim, attempt, run, inputs.values(), {"lines": published})
    bench.ledger.record_node(pipeline_run, node.id, stage="link", how="ran", reason="test", run_id=run_id)
    return InputRef(name="lines", kind=ArtifactKind.SOURCE, artifact_id=published.artifact_id, uri=published.uri)


def test_a_plan_of_a_hundred_stages(tmp_path):
    spec = StageSpec(
        name="link", version=1, function="stages_for_faults:count", config_model="stages_for_faults:CountConfig",
        inputs={"before": InputSpec(ArtifactKind.SOURCE, optional=True)}, outputs={"lines": ArtifactKind.SOURCE},
    )  # fmt: skip
    nodes = [
        StageNode(f"n{i}", spec, CountConfig(items=i), {"before": (f"n{i - 1}", "lines")} if i else {})
        for i in range(100)
    ]
    with open_bench(tmp_path / "home") as bench:
        store, made = ArtifactStore(bench.workspace.store_uri), None
        pipeline_run = bench.ledger.begin_pipeline_run("bench", {})
        for i, node in enumerate(nodes):
            inputs = {"before": made.model_copy(update={"name": "before"})} if made else {}
            made = commit(bench, store, pipeline_run, node, inputs, i)
        asked: list[str] = []
        event.listen(bench.ledger._db.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        assert plan(bench, nodes).all_hits
        assert len(asked) <= STATEMENTS_A_STAGE * len(nodes), "planning on a full history"
        changed = [replace(nodes[0], seed=1), *nodes[1:]]
        asked.clear()
        counts = plan(bench, changed).counts()
        assert len(asked) <= STATEMENTS_A_STAGE * len(nodes)
    assert counts == {"hit": 0, "run": 1, "hit-if-unchanged": 99}


HUNDRED = """
import json, sys
from pathlib import Path
sys.argv = ["m4v", "plan", {recipe!r}, "--json", *{options!r}]
from pipelines.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {{"torch", "prefect", "ray", "deepspeed", "transformers", "fastapi", "duckdb"}} & set(sys.modules)
Path({out!r}).write_text(json.dumps(sorted(heavy)))
"""


def hundred_stages(path: Path) -> Path:
    """`micro` with a ladder so long that the pipeline has a hundred stages."""
    micro = yaml.safe_load((Path(__file__).parents[2] / "pipelines" / "recipes" / "micro.yaml").read_text())
    last = micro["train"][-1]
    micro["train"] += [{**last, "name": f"again{n}", "steps": 4 + n} for n in range(84)]
    micro["name"] = "hundred"
    path.write_text(yaml.safe_dump(micro))
    return path


@pytest.mark.parametrize("options", [(), ("--diff",)])
def test_the_command_plans_a_hundred_stages_without_heavy_imports(tmp_path, monkeypatch, options):
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    recipe = hundred_stages(tmp_path / "hundred.yaml")
    if options:
        with Ledger.open(Workspace.open().ledger_url) as ledger:
            options = (*options, ledger.begin_pipeline_run("hundred", {}))
    script = HUNDRED.format(recipe=str(recipe), options=options, out=str(tmp_path / "heavy.json"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["plan" if options else "steps"]) >= (1 if options else 100)
    assert json.loads((tmp_path / "heavy.json").read_text()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: [n[0], n[0]], "two nodes have one id"),
        (lambda n: [n[2]], "input comes from an unknown node"),
        (lambda n: [*n[:2], replace(n[2], inputs={"part.0": ("count.a", "line")})], "did you mean lines?"),
        (lambda n: [*n[:2], replace(n[2], inputs={"pat.0": ("count.a", "lines")})], "stage has no such input"),
        (lambda n: [*n[:2], replace(n[2], inputs={})], "input is not connected"),
        (
            lambda n: [*n, replace(n[2], id="again", inputs={"part.0": ("total", "sum")})],
            "takes source, total makes clips",
        ),
        (lambda n: [replace(n[0], resources=Resources(ranks=2, threads=1, workers=1))], "one rank only"),
    ],
)
def test_a_wrong_graph_is_refused(change, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        topological_order(change(pipeline()))


def test_cycles_are_refused_and_order_is_topological():
    loop = StageSpec(
        name="x", version=1, function="a:b", config_model="a:b", inputs={"i": InputSpec(ArtifactKind.CLIPS)},
        outputs={"o": ArtifactKind.CLIPS},
    )  # fmt: skip
    nodes = [
        StageNode("p", loop, TotalConfig(), {"i": ("q", "o")}),
        StageNode("q", loop, TotalConfig(), {"i": ("p", "o")}),
    ]
    with pytest.raises(ConfigError, match="wait for each other"):
        topological_order(nodes)
    assert [n.id for n in topological_order(pipeline()[::-1])] == ["count.b", "count.a", "total"]


def test_labels_of_list_inputs():
    assert TOTAL.input_spec("part.57f") is TOTAL.inputs["part"]
    assert TOTAL.input_spec("part") is None
    assert TOTAL.input_spec("part.") is None
