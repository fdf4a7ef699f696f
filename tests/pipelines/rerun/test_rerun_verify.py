"""Runs executed again from their ledger rows: equal bytes, what is refused, what is told, and what is left behind."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from bench import open_bench
from stages_for_faults import REPORT, WATCH, CountConfig, TotalConfig, pipeline

from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from pipelines import stages
from pipelines.launchers import LocalLauncher
from pipelines.ledger import new_id
from pipelines.ledger.process import process_token
from pipelines.lookup import known_record
from pipelines.rerun import Allowed, Tolerance, Verdict, Verifier, read_details
from pipelines.rerun.verify import sweep
from pipelines.spec import StageNode


def verifier(bench, **options) -> Verifier:
    return Verifier(bench.workspace, bench.ledger, LocalLauncher, **options)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


class Verified:
    """A home in which a small pipeline ran and was verified once; `before` and `after` are the store's artifacts."""

    def __init__(self, bench, switches: Path) -> None:
        self.bench, self.switches = bench, switches
        run = bench.new_run(pipeline(switches))
        self.run_id, self.outcomes = run.id, run.run_all()
        self.worked = self.work_log()
        self.before = self.artifacts()
        self.found = verifier(bench).verify(run.id)

    def work_log(self) -> str:
        return (self.switches / "work.log").read_text()

    def artifacts(self) -> dict[str, bytes]:
        return tree(Path(self.bench.workspace.store_uri) / "artifacts")


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    root = tmp_path_factory.mktemp("verified")
    (root / "switches").mkdir()
    with open_bench(root / "home") as opened:
        yield Verified(opened, root / "switches")


def test_a_whole_run_is_made_again_beside_the_record(verified):
    found, bench = verified.found, verified.bench
    assert (found.kind, found.verdict) == ("pipeline run", Verdict.IDENTICAL)
    assert [(s.node_id, s.verdict) for s in found.stages] == [
        ("count.a", Verdict.IDENTICAL), ("count.b", Verdict.IDENTICAL), ("total", Verdict.IDENTICAL)
    ]  # fmt: skip
    assert verified.work_log() == verified.worked * 2, "resume state or items were reused"
    assert verified.artifacts() == verified.before, "something was published"
    assert list((bench.workspace.home / "rerun").iterdir()) == []
    assert bench.ledger.verify_chain().ok


def test_the_verdict_is_an_event_with_its_details_in_the_store(verified):
    bench, outcomes = verified.bench, verified.outcomes
    (of_stage,) = bench.ledger.verifications(outcomes["total"].run_id)
    (of_run,) = bench.ledger.verifications(verified.run_id)
    assert of_stage.verdict == of_run.verdict == "identical"
    assert of_run.facts["stages"] == {"count.a": "identical", "count.b": "identical", "total": "identical"}
    output = of_stage.facts["outputs"]["sum"]
    assert output["recorded"] == output["made"] == outcomes["total"].outputs["sum"].artifact_id
    details = read_details(bench.workspace.store_uri, of_run.facts["details"])
    assert details["verdict"] == "identical"
    assert details["stages"][2]["outputs"][0]["files"] == 1


def test_a_stage_that_makes_other_bytes_is_found_at_the_right_place(bench, tmp_path):
    """Its output depends on what lies outside its key: what a repeated run is for."""
    module = tmp_path / "modules" / "moody_stage.py"
    module.parent.mkdir()
    module.write_text(
        textwrap.dedent(
            """
            import json, os
            from pathlib import Path
            from stages_for_faults import CountConfig

            def run(context):
                value = float(Path(context.request.locations["mood"], "value").read_text())
                folder = context.output("lines")
                (folder / "numbers.json").write_text(json.dumps({"fixed": 1, "rows": [0.5, value]}))
                (folder / "same.txt").write_text("always\\n")
            """
        )
    )
    mood = tmp_path / "mood"
    mood.mkdir()
    (mood / "value").write_text("2.0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(module.parent), os.environ["PYTHONPATH"]])
    spec = replace(WATCH, name="moody", function="moody_stage:run", probe=None)
    sys.path.insert(0, str(module.parent))
    try:
        node = StageNode("moody", spec, CountConfig(), locations={"mood": str(mood)})
        run_id = bench.run([node])["moody"].run_id
        assert verifier(bench).verify(run_id).verdict is Verdict.IDENTICAL
        (mood / "value").write_text("3.5")
        found = verifier(bench).verify(run_id)
        (mood / "value").write_text("2.0000000000001")
        near = verifier(bench).verify(run_id)
        strict = verifier(bench, tolerance=Tolerance(0.0, 0.0), keep=True).verify(run_id)
    finally:
        sys.path.remove(str(module.parent))
    assert found.verdict is Verdict.DIFFERS
    (output,) = found.stages[0].outputs
    (file,) = output.different
    assert (file.path, file.how, file.first.where) == ("numbers.json", "json", "$.rows[1]")
    assert (file.first.recorded, file.first.made, file.max_abs) == (2.0, 3.5, 1.5)
    assert output.files == 2
    assert (near.verdict, strict.verdict) == (Verdict.WITHIN, Verdict.DIFFERS)
    kept = Path(strict.stages[0].log).parent
    assert (kept / "attempt" / "staging" / "lines" / "numbers.json").is_file()
    rows = bench.ledger.verifications(run_id)
    assert [r.verdict for r in rows] == ["identical", "differs", "equal within tolerance", "differs"]
    assert rows[1].facts["first_difference"] == "lines: numbers.json: $.rows[1]: 2.0 -> 3.5"


def test_changed_code_is_refused_and_may_be_allowed(verified, monkeypatch):
    bench, run_id = verified.bench, verified.outcomes["count.b"].run_id
    from pipelines.rerun import recorded

    real = recorded.reachable_files
    monkeypatch.setattr(
        recorded, "reachable_files", lambda *a: {**real(*a), "m4v/core/rng.py": "f" * 64, "m4v/new.py": "e" * 64}
    )
    with pytest.raises(ConfigError, match=r"code changed: .*m4v/new.py added") as refused:
        verifier(bench).verify(run_id)
    assert "--allow-code" in refused.value.message
    assert len(bench.ledger.verifications(run_id)) == 1
    found = verifier(bench, allowed=Allowed(code=True)).verify(run_id)
    assert found.verdict is Verdict.IDENTICAL
    assert any("m4v/new.py added" in words for words in found.stages[0].allowed)
    assert bench.ledger.verifications(run_id)[1].facts["allowed"]


def test_a_changed_lock_file_is_refused(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text("")
    with open_bench(tmp_path / "home", lock_file=str(lock)) as bench:
        run_id = bench.run(pipeline()[:1])["count.a"].run_id
        lock.write_text("# another\n")
        with pytest.raises(ConfigError, match="lock file: "):
            verifier(bench).verify(run_id)
        assert verifier(bench, allowed=Allowed(code=True)).verify(run_id).verdict is Verdict.IDENTICAL


@pytest.mark.parametrize("sharded", [True, False])
def test_the_number_of_ranks_is_held_where_the_record_has_it(bench, sharded):
    from stages_for_faults import COUNT

    node = StageNode("count.a", replace(COUNT, numeric=True, sharded=sharded), CountConfig())
    run_id = bench.run([node])["count.a"].run_id
    numerics = known_record(bench.ledger.run(run_id)).numerics
    assert numerics is not None
    assert ("world_size" in numerics) is not sharded
    assert verifier(bench).verify(run_id).verdict is Verdict.IDENTICAL


def test_another_machine_is_refused_and_may_be_allowed(bench, monkeypatch):
    from stages_for_faults import COUNT

    node = StageNode("count.a", replace(COUNT, numeric=True), CountConfig())
    run_id = bench.run([node])["count.a"].run_id
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    from pipelines.environment import architecture

    architecture.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"numerics architecture: .*--allow-machine"):
            verifier(bench).verify(run_id)
        found = verifier(bench, allowed=Allowed(machine=True)).verify(run_id)
    finally:
        architecture.cache_clear()
    assert found.verdict is Verdict.IDENTICAL
    assert found.stages[0].allowed[0].startswith("numerics architecture")


def test_a_changed_folder_and_a_missing_input_are_refused(bench, tmp_path, monkeypatch):
    folder = tmp_path / "films"
    folder.mkdir()
    nodes = [StageNode("watch", WATCH, CountConfig(), locations={"folder": str(folder)})]
    run_id = bench.run(nodes)["watch"].run_id
    (folder / "new.mp4").touch()
    # A probe is known from the declaration of today, and the house declares no such stage.
    monkeypatch.setattr(stages, "ALL", (*stages.ALL, WATCH))
    with pytest.raises(InputError, match="files outside the store"):
        verifier(bench).verify(run_id)
    total = replace(pipeline()[2], inputs={"part.0": ("count.a", "lines")})
    outcomes = bench.run([pipeline()[0], total])
    shutil.rmtree(outcomes["count.a"].outputs["lines"].uri)
    with pytest.raises(DataIntegrityError, match="no manifest"):
        verifier(bench).verify(outcomes["total"].run_id)


def test_a_report_gets_the_facts_that_it_had(bench):
    nodes = [pipeline()[0], StageNode("report", REPORT, TotalConfig(), {"total": ("count.a", "lines")})]
    run = bench.new_run(nodes)
    outcome = run.run_all()["report"]
    shutil.rmtree(bench.workspace.work_root)
    assert verifier(bench).verify(outcome.run_id).verdict is Verdict.IDENTICAL


def test_a_stage_that_fails_is_a_verdict(bench, switches):
    outcome = bench.run(pipeline(switches)[:1])["count.a"]
    (switches / "bug").touch()
    found = verifier(bench).verify(outcome.run_id)
    assert (found.verdict, found.stages[0].outputs) == (Verdict.FAILED, ())
    assert "a bug" in found.stages[0].message
    assert bench.ledger.verifications(outcome.run_id)[0].verdict == "failed"


def test_only_runs_can_be_executed_again(verified):
    bench, outcome = verified.bench, verified.outcomes["count.a"]
    with pytest.raises(InputError, match="no run that could be executed again"):
        verifier(bench).verify(outcome.outputs["lines"].artifact_id)
    empty = bench.ledger.begin_pipeline_run("bench", {})
    with pytest.raises(InputError, match="no stage of this run has outputs"):
        verifier(bench).verify(empty)


def test_an_earlier_releases_row_without_a_request_says_so(bench, monkeypatch):
    monkeypatch.setattr("pipelines.attempt.read_record", lambda _: {})
    outcome = bench.run(pipeline()[:1])["count.a"]
    with pytest.raises(InputError, match="does not hold how this run was launched"):
        verifier(bench).verify(outcome.run_id)


def test_what_a_killed_verification_left_is_swept(tmp_path):
    root = tmp_path / "rerun"
    dead, live = root / new_id(), root / new_id()
    for folder in (dead, live):
        folder.mkdir(parents=True)
    child = subprocess.run(
        [sys.executable, "-c", "from pipelines.ledger.process import process_token; print(process_token())"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    (dead / "owner").write_text(child.stdout.strip())
    (live / "owner").write_text(process_token())
    (root / new_id()).mkdir()  # kept to be looked at
    assert sweep(tmp_path) == [dead]
    assert live.is_dir()
    assert len(list(root.iterdir())) == 2


def test_the_request_is_in_the_row_and_not_in_the_key(verified):
    bench, switches, first = verified.bench, verified.switches, verified.outcomes["count.a"]
    again = bench.run(pipeline(None)[:1])["count.a"]
    assert again.status == "hit", "where switches lie is no part of the key"
    environment = bench.ledger.run(first.run_id).environment
    assert environment["request"]["locations"] == {"switches": str(switches)}
    assert environment["request"]["function"] == "stages_for_faults:count"
    assert json.dumps(bench.ledger.run(first.run_id).key_record).find(str(switches)) == -1
    assert set(environment["code"]) >= {"commit", "dirty", "version"}
