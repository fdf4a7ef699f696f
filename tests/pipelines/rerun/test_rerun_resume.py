"""A verification that was stopped goes on, and one over a whole ledger covers every stage run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bench import FAULTS, open_bench
from stages_for_faults import pipeline

from pipelines.launchers import LocalLauncher
from pipelines.rerun import Tolerance, Verdict, Verifier
from pipelines.rerun.verify import EVERY_RUN

KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bench import die_at, open_bench
from pipelines.launchers import LocalLauncher
from pipelines.rerun import Verifier

die_at("pipelines.ledger:Ledger.record_verification after 1")
with open_bench(Path(sys.argv[2])) as bench:
    Verifier(bench.workspace, bench.ledger, LocalLauncher).verify(sys.argv[3])
"""


def test_killed_after_a_stage_it_goes_on_with_the_next(tmp_path: Path) -> None:
    switches = tmp_path / "switches"
    switches.mkdir()
    with open_bench(tmp_path / "home") as bench:
        run = bench.new_run(pipeline(switches)[:2])
        outcomes = run.run_all()
        work = (switches / "work.log").read_text().splitlines()
        command = [sys.executable, "-c", KILLED, str(FAULTS), str(tmp_path / "home"), run.id]
        assert subprocess.run(command, cwd=FAULTS.parents[1], check=False).returncode == -9
        told: list[str] = []
        verifier = Verifier(bench.workspace, bench.ledger, LocalLauncher, tell=told.append)
        other = Verifier(bench.workspace, bench.ledger, LocalLauncher, tolerance=Tolerance(0.1))
        runs = [(bench.ledger.run(str(o.run_id)), ()) for o in outcomes.values()]
        assert len(verifier._stopped(run.id, "pipeline run", runs).verdicts) == 1
        assert other._stopped(run.id, "pipeline run", runs).verdicts == {}, "another tolerance is another verification"
        found = verifier.verify(run.id)
        assert found.verdict is Verdict.IDENTICAL
        assert [s.node_id for s in found.stages] == ["count.a", "count.b"]
        assert told[1] == f"going on with verification {found.verification_id}: 1 of 2 are done"
        assert [line.split(":")[0] for line in told[2:]] == ["count.b", "count.b"]
        assert sorted((switches / "work.log").read_text().splitlines()) == sorted(work * 2), "each stage once more"
        for outcome in outcomes.values():
            (verdict,) = bench.ledger.verifications(str(outcome.run_id))
            assert verdict.facts["verification_id"] == found.verification_id
        (whole,) = bench.ledger.verifications(run.id)
        assert set(whole.facts["stages"].values()) == {"identical"}
        # Concluded: the next one is another, over every run of the ledger, and knows nothing of this one.
        every = verifier.verify_all()
        assert every.verification_id != found.verification_id
        assert {s.run_id for s in every.stages} == {o.run_id for o in outcomes.values()}
        assert bench.ledger.verifications(EVERY_RUN)[0].verdict == "identical"
        assert bench.ledger.verify_chain().ok
        assert list((bench.workspace.home / "rerun").iterdir()) == []


def test_a_stage_that_failed_is_tried_again_and_anew_begins_again(tmp_path: Path) -> None:
    switches = tmp_path / "switches"
    switches.mkdir()
    with open_bench(tmp_path / "home") as bench:
        run = bench.new_run(pipeline(switches)[:1])
        run.run_all()
        verifier = Verifier(bench.workspace, bench.ledger, LocalLauncher)
        conclude = Verifier._record_whole
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Verifier, "_record_whole", lambda *_: None)  # stopped before the last word
            (switches / "bug").touch()
            failed = verifier.verify(run.id)
            (switches / "bug").unlink()
            again = verifier.verify(run.id)
            same = verifier.verify(run.id)
            anew = replace(verifier, anew=True).verify(run.id)
        assert Verifier._record_whole is conclude
        assert (failed.verdict, again.verdict) == (Verdict.FAILED, Verdict.IDENTICAL)
        assert same.stages == again.stages, "taken from its event"
        assert len({again.verification_id, same.verification_id}) == 1
        assert anew.verification_id not in {failed.verification_id, again.verification_id}
