"""After a takedown the recipe runs again: without the clip, with the samples of the version that was written."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from takedown_home import TakedownHome

from dataprep.quarantine import read_quarantine
from pipelines.cli.main import main
from pipelines.impact import Verdict
from pipelines.ledger import Ledger, NodeOutcome, Withdrawn
from pipelines.takedown.policy import Delete


def test_a_run_again_has_the_samples_of_the_new_version(home: TakedownHome) -> None:
    row = next(r for r in home.rows(home.only("dataset")) if r["source"] == "street")
    digests = {s.node_id: s.stage_key for s in home.session().plan("encode").steps}
    done = home.apply(row["clip_id"])
    (version,) = [r["successor"] for r in done.receipt["replaced"] if r.get("samples_digest")]
    run = home.session().new_run("encode")
    outcomes = run.run_all()
    assert [str(o.status) for o in outcomes.values()] == ["hit", "hit", "ran", "ran"]
    assert outcomes["curate"].stage_key != digests["curate"]
    made = outcomes["encode"].outputs["dataset"].artifact_id
    assert home.samples(made) == home.samples(version)
    clips = home.artifact(outcomes["curate"].outputs["clips"].artifact_id, "clips")
    taken = [r for r in read_quarantine(clips.path("quarantine.parquet")) if r.reason == "takedown"]
    assert [r.detail for r in taken] == [f"takedown {done.case.takedown_id}: clip {row['clip_id']}"]
    # Again: nothing to do.
    assert all(str(o.status) == "hit" for o in home.session().new_run("encode").run_all().values())


@pytest.mark.deep
def test_impact_and_retrain_plan_of_a_whole_run(
    micro_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with TakedownHome.open(micro_copy) as home:
        dataset = home.only("dataset")
        clip = next(r for r in home.rows(dataset) if r["source"] == "street" and r["bucket_t"] > 1)["clip_id"]
        (run,) = home.ledger.pipeline_runs(recipe="micro")
        reward = next(n.run_id for n in home.ledger.nodes(run.pipeline_run_id) if n.node_id == "reward")
        assert reward is not None
        checkpoint = home.ledger.run(reward).output("checkpoint").artifact_id
        home.ledger.move_channel("production", checkpoint, expected=None, moved_by="ada", reason="first")
        trained = brute_force_trained(home.ledger, dataset)

        def m4v(*arguments: str) -> Any:
            monkeypatch.setattr(sys, "argv", ["m4v", "--home", str(micro_copy), "takedown", *arguments, "--json"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
            return json.loads(capsys.readouterr().out)

        found = m4v("impact", clip[:12])
        assert [h["artifact_id"] for h in found["holders"] if h["kind"] == "dataset"] == [dataset]
        assert {c["artifact_id"] for c in found["checkpoints"]} == trained
        assert [c["name"] for c in found["channels"]] == ["production"]
        done = m4v("apply", clip[:12], "--reason", "licence", "--delete", "now", "--withdraw-checkpoints")
        saw = {c["artifact_id"] for c in found["checkpoints"] if c["verdict"] != Verdict.CONTAINS}
        assert saw
        assert {w["artifact_id"] for w in done["receipt"]["withdrawn"] if w["kind"] == "checkpoint"} == saw
        with pytest.raises(Withdrawn):
            home.ledger.move_channel("beta", checkpoint, expected=None, moved_by="ada", reason="x")
        (cure,) = done["retrain"]
        assert cure["channels"] == ["production"]
        assert cure["command"] == "m4v run micro"
        stages = [s["node_id"] for s in cure["plan"]["steps"]]
        kept = {"source.shapes", "source.street", "init", "generate.untrained", "evaluate.untrained"}
        assert cure["runs_again"] == [s for s in stages if s not in kept]
        assert {c["verdict"] for c in done["receipt"]["affected"]["checkpoints"]} <= {str(v) for v in Verdict}
        again = home.session_of("micro").new_run()
        outcomes = again.run_all()
        hits = {name for name, o in outcomes.items() if str(o.status) == str(NodeOutcome.HIT)}
        assert hits == kept  # the plan was right
        new = outcomes["encode"].outputs["dataset"].artifact_id
        assert clip not in {r["clip_id"] for r in home.rows(new)}


def brute_force_trained(ledger: Ledger, dataset: str) -> set[str]:
    """Checkpoints of which a run up their line read the dataset, by walking every run of the ledger."""
    runs = ledger.runs(limit=None)
    reached: set[str] = set()
    while True:
        before = len(reached)
        for run in runs:
            if any(port.artifact_id == dataset or port.artifact_id in reached for port in run.inputs):
                reached |= {port.artifact_id for port in run.outputs if port.kind == "checkpoint"}
        if len(reached) == before:
            return reached


def test_keep_leaves_the_bytes_and_says_so(home: TakedownHome) -> None:
    clip = home.rows(home.only("dataset"))[0]["clip_id"]
    done = home.apply(clip, delete=Delete.KEEP)
    assert done.receipt["deletion"] == "kept"
    assert any("policy: keep" in text for text in done.receipt["remaining"])
