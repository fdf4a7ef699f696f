"""The driver of the GPU benchmarks: gates, limits, what is kept, what is taken up again. Jobs are small scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

from headlines import Figure, figures, measured_rows
from result_rows import rows as rows_of
from suite_processes import Gpu
from suite_runner import FAILED, LOGS, NOT_RUN, OK, RESERVE_S, RESULTS, SKIPPED, STATE, SUMMARY, Runner, filled
from suites import SUITES, Job, jobs_of

ROOT = Path(__file__).parents[2]
BUDGET_S = 600.0
TESTED = "import sys; open(sys.argv[1], 'w').write('<testsuites><testsuite {}/></testsuites>')"
SAID = "import sys; print('seen'); open(sys.argv[1], 'w').write({!r})"


def job(name: str, code: str, **more: object) -> Job:
    return Job(name, ("-c", code, "{out}"), most_s=300, tiny=(), **more)  # type: ignore[arg-type]


def gate(name: str, counts: str, gib: float = 1.0) -> Job:
    return job(name, TESTED.format(counts), tests=True, gib=gib)


def rows(*states: str) -> str:
    return json.dumps({"rows": [{"state": state} for state in states]})


def run(tmp_path: Path, jobs: list[Job], budget_s: float = BUDGET_S, **more: object) -> Runner:
    runner = Runner(jobs, tmp_path / "out", budget_s, [Gpu("", 80)], tiny=True, **more)  # type: ignore[arg-type]
    runner.run()
    return runner


def states(runner: Runner) -> dict[str, str]:
    return {name: record.state for name, record in runner.records.items()}


def test_a_failure_stops_only_what_stands_behind_it(tmp_path: Path) -> None:
    jobs = [
        gate("good", 'tests="3" failures="0" errors="0" skipped="1"'),
        job("bad", TESTED.format('tests="1" failures="1"') + "; sys.exit(1)", tests=True, gib=1.0),
        gate("empty", 'tests="2" failures="0" errors="0" skipped="2"'),
        job("measured", SAID.format(rows("measured", "out of memory")), gates=("good",)),
        job("behind", SAID.format(rows("measured")), gates=("good", "bad")),
        job("behind-empty", SAID.format(rows("measured")), gates=("empty",)),
        job("dies", "import os; os.abort()"),
        job("nothing", SAID.format(rows("failed: x"))),
        job("absent", "pass", needs=".carry/of-a-test", how="make it"),
        job("large", "pass", gpus=2),
    ]
    runner = run(tmp_path, jobs)
    assert states(runner) == {
        "good": OK, "bad": FAILED, "empty": SKIPPED, "measured": OK, "behind": SKIPPED, "behind-empty": SKIPPED,
        "dies": FAILED, "nothing": FAILED, "absent": SKIPPED, "large": SKIPPED,
    }  # fmt: skip
    assert runner.records["good"].figures == ["2 passed", "1 skipped"]
    assert runner.records["measured"].figures == ["1/2 rows"]
    assert runner.records["dies"].why == "signal 6"
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {STATE, RESULTS, LOGS, SUMMARY}
    assert set(json.loads((out / RESULTS).read_text())) == {"measured", "nothing"}
    with tarfile.open(out / LOGS) as archive:
        member = archive.extractfile("logs/measured.log")
        assert member is not None
        assert member.read() == b"seen\n"
    assert "| behind | skipped: bad failed |" in (out / SUMMARY).read_text()
    assert not runner.work.exists()
    assert not runner.fast.exists()


def test_a_second_call_takes_what_is_done_and_tries_the_rest(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import sys; open({str(mark)!r}, 'a').write('x')"
    done = job("done", code + f"; open(sys.argv[1], 'w').write({rows('measured')!r})")
    later = job("later", f"import sys; sys.exit(0 if open({str(mark)!r}).read() == 'x' else 1)")
    first = run(tmp_path, [done, Job(**{**vars(later), "words": ("-c", "raise SystemExit(3)")})])
    assert states(first) == {"done": OK, "later": FAILED}
    second = run(tmp_path, [done, Job(**{**vars(later), "words": later.words[:2]})])
    assert states(second) == {"done": OK, "later": OK}
    assert mark.read_text() == "x"
    assert set(json.loads((tmp_path / "out" / RESULTS).read_text())) == {"done"}


def test_what_was_measured_at_another_commit_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job("done", SAID.format(rows("measured")))]
    monkeypatch.setenv("M4V_BENCH_COMMIT", "one")
    assert run(tmp_path, jobs).records["done"].commit == "one"
    monkeypatch.setenv("M4V_BENCH_COMMIT", "two")
    assert run(tmp_path, jobs).records["done"].commit == "two"


def test_past_its_limit_a_job_ends_with_all_that_it_started(tmp_path: Path) -> None:
    pids, result = tmp_path / "pids", rows("measured", "measured")
    code = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open(sys.argv[1], 'w').write({result!r})\n"
        f"open({str(pids)!r}, 'w').write(str(other.pid))\n"
        "time.sleep(600)\n"
    )

    class Ready(Runner):
        """The limit comes once the job has started and written everything, however slow the machine is."""

        def _look_after(self) -> None:
            for child in self.running:
                if child.job.name == "endless" and pids.exists() and pids.read_text():
                    child.until = 0.0
            super()._look_after()

    jobs = [job("endless", code), job("next", SAID.format(rows("measured")))]
    runner = Ready(jobs, tmp_path / "out", BUDGET_S, [Gpu("", 80)], tiny=True)
    runner.run()
    assert states(runner) == {"endless": FAILED, "next": OK}
    assert runner.records["endless"].why.startswith("stopped after")
    assert runner.records["endless"].figures == ["2/2 rows"], "what it wrote before is kept"
    stat = Path("/proc", pids.read_text(), "stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_no_job_begins_without_the_time_it_needs(tmp_path: Path) -> None:
    least = job("least", "pass", least_s=50.0)
    runner = run(tmp_path, [least], budget_s=RESERVE_S + 40)
    assert states(runner) == {"least": NOT_RUN}
    assert runner.records["least"].why.endswith("needs 50")


def test_tests_share_a_gpu_and_a_benchmark_is_alone_on_it(tmp_path: Path) -> None:
    met = "import os, sys, time; a, b = sys.argv[2:]; open(a, 'w'); e = time.time() + 120\n"
    met += "while not os.path.exists(b):\n    time.sleep(0.02)\n    assert time.time() < e\n"
    met += TESTED.format('tests="1"').replace("import sys; ", "")
    one, two, alone = (str(tmp_path / n) for n in ("one", "two", "alone"))
    both = [
        Job(n, ("-c", met, "{out}", a, b), 300, tests=True, gib=30, tiny=())
        for n, a, b in (("a", one, two), ("b", two, one))
    ]
    quiet = job("quiet", f"import os, sys; assert os.path.exists({one!r}); open({alone!r}, 'w')", gates=("a", "b"))
    assert states(run(tmp_path, [*both, quiet])) == {"a": OK, "b": OK, "quiet": FAILED}, "it wrote no result"
    assert Path(alone).exists()


def test_tests_crowd_on_one_gpu_and_leave_the_other_to_a_benchmark(tmp_path: Path) -> None:
    seen = "import os, sys, time; a, b, c = sys.argv[2:]; open(a, 'w'); e = time.time() + 120\n"
    seen += "while not (os.path.exists(b) and os.path.exists(c)):\n    time.sleep(0.02)\n    assert time.time() < e\n"
    marks = [str(tmp_path / n) for n in ("one", "two", "three")]
    tested = seen + TESTED.format('tests="1"').replace("import sys; ", "")
    measured = seen + SAID.format(rows("measured")).replace("import sys; ", "")
    jobs = [
        Job(n, ("-c", code, "{out}", *marks[place:], *marks[:place]), 300, tests=n != "c", gib=gib, tiny=())
        for place, (n, code, gib) in enumerate([("a", tested, 30), ("b", tested, 30), ("c", measured, None)])
    ]

    class Watched(Runner):
        where: dict[str, str]

        def _start(self, job: Job, gpus: tuple[Gpu, ...]) -> None:
            self.where = {**getattr(self, "where", {}), job.name: gpus[0].number}
            super()._start(job, gpus)

    runner = Watched(jobs, tmp_path / "out", BUDGET_S, [Gpu("0", 80), Gpu("1", 80)], tiny=True, spread=True)
    runner.run()
    assert states(runner) == {"a": OK, "b": OK, "c": OK}
    assert runner.where == {"a": "0", "b": "0", "c": "1"}


def test_every_job_of_the_suites_can_be_started() -> None:
    for suite, jobs in SUITES.items():
        names = [j.name for j in jobs]
        assert len(names) == len(set(names))
        for place, one in enumerate(jobs):
            assert set(one.gates) <= set(names[:place]), f"gates of {suite} come first"
            path = next(word for word in one.words if word.endswith(".py"))
            assert (ROOT / path).is_file()
            given = {"out", "left", "work", "fast", "keep", "more"}
            words = " ".join(filled(word, dict.fromkeys(given, "x")) for word in one.words)
            assert not {"{", "}"} & set(words)
    assert [j.name for j in jobs_of(["first"], ["mposition"])] == [
        "test_recomposition", "test_glue_operators", "composition",
    ]  # fmt: skip


def test_no_gpu_test_is_left_out() -> None:
    named = {j.name for jobs in SUITES.values() for j in jobs if j.tests}
    assert named == {
        f"test_{path.stem.removeprefix('test_gpu_')}" for path in (ROOT / "tests/gpu").glob("test_gpu_*.py")
    }


def test_figures_stand_beside_their_goals() -> None:
    ssd = {
        "ratios 15488": {"forward: ours 64 #0 (default)": 2.5, "both: ours 64 #0 (default)": 1.5, "both: ours 32 #1": 2}
    }
    assert [str(f) for f in figures("ssd_rest", ssd)] == [
        "forward 15488 2.5 (>= 2: met)", "both 15488 1.5 (>= 1.6: NOT MET)",
    ]  # fmt: skip
    step = {"goals": [[121, "ours", "reference", "tokens/s", 2.6, "at least 2.5"],
                      [121, "ours", "attention", "peak GiB", 0.9, "at most 0.8"]]}  # fmt: skip
    assert figures("step", step) == [
        Figure("ours / reference tokens/s", 2.6, 2.5), Figure("ours / attention peak GiB", 0.9, -0.8)
    ]  # fmt: skip
    assert figures("budget", {"rows": []}) == []
    assert measured_rows({"rows": [{"state": "measured"}, {"state": "no time left"}]}) == (1, 2)
    assert measured_rows({"rows": {"x": {}}}) is None


def test_rows_for_the_page_of_results_come_from_what_was_kept() -> None:
    step = {"facts": {"device": "H", "date": "D", "commit": "old"}, "rows": [{"state": "measured"}],
            "goals": [[241, "ours", "reference", "tokens/s", 2.6, "at least 2.5"]]}  # fmt: skip
    found = list(rows_of({"step_241": step, "unheard": step}, {"jobs": {"step_241": {"commit": "c"}}}, []))
    command = "`python tests/benchmarks/gpu/bench_step.py --frames 241`"
    figure = "ours / reference tokens/s, 241 frames 2.6 (>= 2.5: met); 1 of 1 rows measured"
    assert found == [f"| step_241 | {figure} | {command} | c | D | H |"]
    assert list(rows_of({"step_241": step}, {}, ["blocks"])) == []


def test_the_command_lists_its_suites_and_refuses_without_a_gpu(tmp_path: Path) -> None:
    def said(*words: str) -> subprocess.CompletedProcess[str]:
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "tests.benchmarks.gpu", *words]
        return subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)

    assert "  wan_layer " in said("--list").stdout
    refused = said("--suite", "wan", "--out", str(tmp_path / "out"))
    assert refused.returncode == 10
    assert "--tiny" in refused.stderr
