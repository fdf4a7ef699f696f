"""`m4v runs list|show|diff|rerun|drain|cancel` on a home in which small stages really ran."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from bench import open_bench
from stages_for_faults import CountConfig, pipeline

from m4v.core.errors import ExitClass, InputError
from pipelines.cli.main import VERBS, _verb, main
from pipelines.cli.output import duration
from pipelines.cli.run_list import parse_since
from pipelines.cli.run_measured import COLUMNS, print_measured
from pipelines.cli.run_show import code_words, exit_name
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace


class Home:
    """Two runs of the small pipeline, the second with another config and with an attempt that failed."""

    def __init__(self, root) -> None:
        self.root = root
        with open_bench(root / "home") as bench:
            self.first, self.second = (
                bench.new_run(pipeline()),
                bench.new_run(pipeline(second=CountConfig(label="b", factor=5))),
            )
            self.before, self.after = self.first.run_all(), self.second.run_all()
            claim = bench.ledger.claim("9" * 64, "test")
            self.failed = bench.ledger.begin_attempt(
                claim, stage="count", work_dir="w", log_path="l", pipeline_run_id=self.second.id, node_id="count.b"
            )
            bench.ledger.finish_attempt(self.failed, 30, "the network is away")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def call(ran, monkeypatch, capsys):
    monkeypatch.setenv("M4V_HOME", str(ran.root / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if "faults" in p))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_list_filters(ran, call):
    code, out, _ = call("runs", "list", "--json")
    assert code == ExitClass.OK
    assert [r["pipeline_run_id"] for r in json.loads(out)] == [ran.second.id, ran.first.id]
    assert json.loads(out)[0]["outcomes"] == {"hit": 1, "ran": 2}
    assert json.loads(call("runs", "list", "--status", "failed", "--json")[1]) == []
    assert len(json.loads(call("runs", "list", "--status", "succeeded", "--since", "1h", "--json")[1])) == 2
    assert json.loads(call("runs", "list", "--since", "2999-01-01", "--json")[1]) == []
    assert json.loads(call("runs", "list", "--recipe", "other", "--json")[1]) == []
    assert "there are older ones" in call("runs", "list", "--limit", "1")[1]
    stages = json.loads(call("runs", "list", "--stage", "count", "--json")[1])
    assert len(stages) == 3
    (failed,) = json.loads(call("runs", "list", "--stage", "count", "--status", "failed", "--json")[1])
    assert (failed["attempt_id"], failed["message"]) == (ran.failed, "the network is away")
    code, _, error = call("runs", "list", "--since", "yesterday")
    assert (code, error.count("\n")) == (ExitClass.CONFIG, 1)


def test_time_and_memory_of_training_stages_stand_side_by_side(ran, capsys):
    trained = {
        "steps": 2, "step_seconds_median": 6.5, "start_seconds": 14.8, "save_seconds": 32.25,
        "gpu_peak_bytes": 61.9 * 2**30, "rss_peak_bytes": 46.1 * 2**30,
    }  # fmt: skip
    with Ledger.open(f"sqlite:///{ran.root / 'home' / 'ledger.db'}") as ledger:
        count, total = ledger.runs(stage="count", limit=1)[0], ledger.runs(stage="total", limit=1)[0]
        print_measured(ledger, {"train.57f": replace(count, metrics=trained), "total": total})
        attempts = ledger.attempts(stage_key=count.stage_key)
        print_measured(ledger, {"total": total})
    took = duration(sum(a.duration_s for a in attempts))
    assert capsys.readouterr().out.splitlines() == [
        "", "training, as measured", "\t".join(COLUMNS),
        f"train.57f\t2\t{took}\t14.8 s\t6.5 s\t32.2 s\t61.9 GiB\t46.1 GiB",
    ]  # fmt: skip


def test_show_a_pipeline_run(ran, call):
    code, out, _ = call("runs", "show", ran.second.id[:14])
    assert code == ExitClass.OK
    assert "config factor: 2 -> 5" in out
    assert "30 infrastructure" in out, "the failed attempt"
    data = json.loads(call("runs", "show", ran.second.id, "--json")[1])
    assert data["environment"]["code"]["version"]
    assert data["exit"] == "0 ok"
    nodes = {n["node_id"]: n for n in data["nodes"]}
    assert (nodes["count.a"]["attempts"], nodes["count.b"]["metrics"]) == ([], {"items": 3})
    assert nodes["total"]["duration_s"] > 0
    assert "name: bench" in call("runs", "show", ran.second.id, "--config")[1]


def test_show_a_stage_run(ran, call):
    run_id = ran.after["total"].run_id
    out = call("runs", "show", run_id)[1]
    for word in (ran.second.id, "input", "part.1", "round_to", "python", "stage.log", "host", "code"):
        assert word in out
    data = json.loads(call("runs", "show", run_id, "--json")[1])
    assert (data["pipeline_run_id"], data["node_id"], data["gpu_hours"]) == (ran.second.id, "total", 0.0)
    assert [a["exit"] for a in data["attempts"]] == ["0 ok"]
    code, _, error = call("runs", "show", ran.before["total"].outputs["sum"].artifact_id)
    assert code == ExitClass.CONFIG
    assert "m4v artifacts show" in error


def test_diff_for_people_and_machines(ran, call):
    code, out, _ = call("runs", "diff", ran.first.id, ran.second.id)
    assert code == ExitClass.OK
    assert "config factor: 2 -> 5" in out
    assert "artifact has no such file" in out, "these clips have no table, and that is said"
    assert "no difference in config, code, environment, weights, metrics, samples" in out
    data = json.loads(call("runs", "diff", ran.first.id, ran.second.id, "--json")[1])
    assert [s["same_outputs"] for s in data["stages"]] == [True, False, False]
    out = call("runs", "diff", ran.before["count.b"].run_id, ran.after["count.b"].run_id)[1]
    assert "factor\t2\t5" in out


def test_rerun_and_its_verdict(ran, call):
    run_id = ran.before["count.a"].run_id
    code, out, _ = call("runs", "rerun", run_id, "--verify")
    assert code == ExitClass.OK, out
    assert out.rstrip().endswith(f"stage run {run_id}: identical")
    assert "executed again" in call("runs", "show", run_id)[1]
    code, _, error = call("runs", "rerun", ran.first.id)
    assert code == ExitClass.CONFIG
    assert "made from no recipe" in error


def test_a_verdict_that_differs_ends_with_20(ran, call, monkeypatch):
    from pipelines.rerun import OutputVerdict, Verdict, verify

    def differing(ledger, port, made, tolerance):
        return OutputVerdict(port.name, port.kind, Verdict.DIFFERS, port.artifact_id, made.artifact_id, 1, note="")

    monkeypatch.setattr(verify, "compare_output", differing)
    code, _, error = call("runs", "rerun", ran.before["count.a"].run_id, "--verify", "--json")
    assert code == ExitClass.DATA_INTEGRITY
    assert "count.a differs" in error


def test_what_has_ended_cannot_be_stopped(ran, call):
    for verb in ("drain", "cancel"):
        code, _, error = call("runs", verb, ran.first.id)
        assert code == ExitClass.CONFIG
        assert "it has ended: succeeded" in error


def test_stopping_takes_an_operator(ran, call, monkeypatch):
    (ran.root / "home" / "settings.yaml").write_text("access: {roles: {ada: operator}, default: viewer}\n")
    monkeypatch.setenv("M4V_ACTOR", "eve")
    try:
        code, _, error = call("runs", "cancel", ran.first.id)
    finally:
        (ran.root / "home" / "settings.yaml").unlink()
    assert code == ExitClass.NEEDS_HUMAN
    assert "eve is a viewer; to cancel a run takes the role operator" in error


def test_drain_is_asked_under_the_actors_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M4V_ACTOR", "ada")
    with Ledger.open(Workspace.open().ledger_url) as ledger:
        run_id = ledger.begin_pipeline_run("micro", {})
        monkeypatch.setattr(sys, "argv", ["m4v", "runs", "drain", run_id, "--reason", "power", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert json.loads(capsys.readouterr().out)["requested_by"] == "ada"
        assert ledger.drain_requests()[0].reason == "power"


def test_since_in_words_and_times():
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert parse_since("90m", now) == datetime(2026, 11, 21, 10, 30, tzinfo=UTC)
    assert parse_since("2w", now) == datetime(2026, 11, 7, 12, tzinfo=UTC)
    assert parse_since("2026-11-20") == datetime(2026, 11, 20, tzinfo=UTC)
    assert parse_since("2026-11-20T10:00+02:00") == datetime(2026, 11, 20, 8, tzinfo=UTC)
    assert parse_since(None) is None
    with pytest.raises(InputError, match="this is no time"):
        parse_since("soon")


def test_code_and_exits_in_words():
    assert code_words({}) == "not recorded"
    assert code_words({"version": "0.1.0", "commit": None, "note": "no git"}) == "version 0.1.0 (no git)"
    assert code_words({"commit": "a" * 40, "branch": "main"}) == "aaaaaaaaaaaa on main"
    dirty = {"commit": "a" * 40, "branch": "main", "dirty": True, "changed": ["x"], "diff": {"sha256": "b" * 64}}
    assert "1 files changed (diff bbbbbbbbbbbb" in code_words(dirty)
    assert (exit_name(None), exit_name(40), exit_name(77)) == (None, "40 drained", "77 unknown")


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (["plan", "micro"], "plan"), (["--home", "x", "plan", "micro"], "plan"), (["--home=x", "runs"], "runs"),
        (["--help"], None), ([], None), (["--home"], None),
    ],
)  # fmt: skip
def test_a_verb_that_stands_alone_loads_alone(arguments, verb):
    assert _verb(arguments) == verb


def test_a_verb_alone_knows_the_same_groups_and_options_as_among_all():
    """Each verb in a process of its own: what a module adds to a group must not come from another verb's imports."""
    program = f"""if True:
        import os, sys
        import pipelines.ledger, pipelines.workspace
        from typer.main import get_command
        from pipelines.cli.main import build_app
        def shape(command):
            below = getattr(command, 'commands', {{}})
            return [[p.opts for p in command.params], {{n: shape(c) for n, c in sorted(below.items())}}]
        for verb in {[*VERBS, None]}:
            if os.fork() == 0:
                for name, command in get_command(build_app(verb)).commands.items():
                    print(verb, name, shape(command), sep='|', flush=True)
                os._exit(0)
            assert os.wait()[1] == 0, verb
    """
    said = subprocess.run([sys.executable, "-c", program], check=True, timeout=300, capture_output=True, text=True)
    rows = [line.split("|") for line in said.stdout.splitlines()]
    whole = {name: shape for verb, name, shape in rows if verb == "None"}
    assert set(whole) == set(VERBS)
    assert {name: shape for verb, name, shape in rows if verb == name} == whole
