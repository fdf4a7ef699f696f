"""Runs the jobs of a suite as child processes within one budget of seconds, and keeps what each found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from headlines import figures, last_json, measured_rows, tests_of
from suite_processes import Child, Gpu, end_with_driver, exit_of, kill, readable, write_archive, write_text
from suites import Job

from pipelines.processes import descendants

ROOT = Path(__file__).parents[3]
COMMIT, CARRIED_COMMIT = "M4V_BENCH_COMMIT", ".carry/COMMIT"
STATE, RESULTS, LOGS, SUMMARY = "state.json", "results.json", "logs.tar.gz", "summary.txt"
OK, FAILED, SKIPPED, NOT_RUN, RUNNING = "ok", "failed", "skipped", "not run", "running"
RESERVE_S = 12.0  # of the budget, for ending and packing
LIMIT_MARGIN_S = 20.0  # a benchmark begins no case so shortly before it would be killed; it also imports that long
POLL_S, LOOK_EVERY_S, KEEP_EVERY_S = 0.2, 1.0, 20.0
TINY_GPU_GIB, FREE_SHARE = 80.0, 0.9


@dataclass
class Record:
    """What became of a job."""

    state: str
    why: str = ""
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)
    commit: str = ""


def commit_of(root: Path = ROOT) -> str:
    """From the environment, the checkout, or the file that was carried along with a copy without its history."""
    if named := os.environ.get(COMMIT):
        return named
    if (root / CARRIED_COMMIT).exists():
        return (root / CARRIED_COMMIT).read_text().strip()
    try:
        answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def filled(word: str, places: Mapping[str, object]) -> str:
    """The word with each `{name}` of `places` replaced; other braces stay."""
    for name, value in places.items():
        word = word.replace("{" + name + "}", str(value))
    return word


class Runner:
    """Jobs in order of worth, each on GPUs of its own or beside others; what is done is kept after each.

    `out` holds four files at any time (state, results, logs, summary) and what jobs give back themselves; made again
    with the same folder, finished jobs are taken as they are.
    """

    def __init__(
        self, jobs: Sequence[Job], out: Path, budget_s: float, gpus: Sequence[Gpu], *, tiny: bool = False,
        despite_gates: bool = False, spread: bool = False, python: str = sys.executable,
    ) -> None:  # fmt: skip
        self.jobs, self.out, self.tiny, self.python = list(jobs), out.resolve(), tiny, python
        self.despite_gates = despite_gates
        self.until = time.monotonic() + budget_s
        self.gpus = list(gpus)
        self.single = self.gpus if spread else self.gpus[:1]  # where jobs of one GPU run
        self.commit = commit_of()
        self.running: list[Child] = []
        self.records: dict[str, Record] = {}
        self.results: dict[str, object] = {}
        self.kept_at = self.looked_at = 0.0
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="m4v-bench-"))
        memory = Path("/dev/shm")
        self.fast = Path(tempfile.mkdtemp(prefix="m4v-bench-", dir=memory if memory.is_dir() and not tiny else None))
        for name in ("logs", "results", "more"):
            (self.work / name).mkdir()
        self._take_earlier()

    def _take_earlier(self) -> None:
        state = self.out / STATE
        if not state.exists():
            return
        held = json.loads(state.read_text())
        self.results = json.loads((self.out / RESULTS).read_text()) if (self.out / RESULTS).exists() else {}
        for name, row in held["jobs"].items():
            if row["state"] == OK and row["commit"] == self.commit:
                self.records[name] = Record(**row)
            elif row["state"] == OK:
                print(f"{name} was measured at {row['commit']}, this is {self.commit}: it runs again", flush=True)
        if (self.out / LOGS).exists():
            with tarfile.open(self.out / LOGS) as archive:
                archive.extractall(self.work, filter="data")

    def left(self) -> float:
        return self.until - RESERVE_S - time.monotonic()

    def run(self) -> bool:
        """Everything there is time for; returns whether nothing failed."""
        waiting = [job for job in self.jobs if job.name not in self.records]
        try:
            while waiting or self.running:
                waiting = self._start_what_can(waiting)
                time.sleep(POLL_S)
                self._look_after()
        finally:
            for child in list(self.running):
                self._end(child, FAILED, "the driver was ended")
            for job in waiting:
                self.records.setdefault(job.name, Record(NOT_RUN, "the driver was ended"))
            self.keep()
            for folder in (self.work, self.fast):
                shutil.rmtree(folder, ignore_errors=True)
        return not any(record.state == FAILED for record in self.records.values())

    def _start_what_can(self, waiting: list[Job]) -> list[Job]:
        """The jobs that still wait. One that only lacks a GPU lets none behind it go first."""
        rest: list[Job] = []
        for place, job in enumerate(waiting):
            open_gates = [g for g in job.gates if g not in self.records]
            if open_gates:
                rest.append(job)
            elif refusal := self._refusal(job):
                self._close(job, Record(*refusal, commit=self.commit))
            elif (gpus := self._free(job)) is None:
                return [*rest, *waiting[place:]]
            else:
                self._start(job, gpus)
        return rest

    def _refusal(self, job: Job) -> tuple[str, str] | None:
        """State and reason of a job that will not run."""
        shut = [g for g in job.gates if self.records[g].state != OK]
        if shut and not self.despite_gates:
            return SKIPPED, f"{shut[0]} {self.records[shut[0]].state}"
        if job.needs and not (ROOT / job.needs).exists():
            return SKIPPED, f"{job.needs} is not here: {job.how}"
        if job.gpus > len(self.gpus) and not (self.tiny and job.interpreted):
            return SKIPPED, f"needs {job.gpus} GPUs, {len(self.gpus)} here"
        if self.left() < job.least_s:
            return NOT_RUN, f"{max(self.left(), 0):.0f} s left, needs {job.least_s:.0f}"
        return None

    def _free(self, job: Job) -> tuple[Gpu, ...] | None:
        """GPUs that it can have now; None if it has to wait."""
        if job.gpus <= 0:
            idle = [g for g in self.gpus if not self._on(g)]
            return () if job.gpus == 0 else tuple(idle) if len(idle) == len(self.gpus) else None
        given = self.single if job.gpus == 1 else self.gpus
        # Jobs that share a GPU crowd on as few as hold them, so that what needs one for itself finds one.
        order = sorted(given, key=lambda g: len(self._on(g)), reverse=job.gib is not None)
        fit = [g for g in order if self._has_room(g, job)]
        count = 1 if self.tiny else job.gpus  # a rehearsal has no GPUs
        return tuple(fit[:count]) if len(fit) >= count else None

    def _has_room(self, gpu: Gpu, job: Job) -> bool:
        others = [child.job.gib for child in self._on(gpu)]
        known = [gib for gib in others if gib is not None]
        if not others or job.gib is None or len(known) < len(others):
            return not others
        return sum(known) + job.gib <= FREE_SHARE * gpu.gib

    def _on(self, gpu: Gpu) -> list[Child]:
        return [child for child in self.running if gpu in child.gpus]

    def _start(self, job: Job, gpus: tuple[Gpu, ...]) -> None:
        given = min(job.most_s, self.left())
        more = self.work / "more" / job.name
        more.mkdir(exist_ok=True)
        places = {
            "out": self._result(job), "left": f"{max(given - LIMIT_MARGIN_S, 10):.0f}", "work": self.work,
            "fast": self.fast, "keep": self.out, "more": more,
        }  # fmt: skip
        words = [self.python, *(filled(word, places) for word in job.words), *(job.tiny if self.tiny else ())]
        environment = {**os.environ, COMMIT: self.commit, "PYTHONUNBUFFERED": "1"}
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        if self.tiny:
            environment |= {"TRITON_INTERPRET": "1"} if job.interpreted else {}
        elif job.gpus:
            environment = {**dict(job.settings), **environment}
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.number for gpu in gpus)
            if job.gib is None:  # shapes that were tried beside other jobs may not be the quickest
                environment["TRITON_CACHE_AUTOTUNING"] = "0"
        print(f"[{self.left():.0f} s left] {job.name}: {' '.join(words[1:])}", flush=True)
        with self._log(job).open("wb") as log:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=end_with_driver,
            )  # fmt: skip
        now = time.monotonic()
        self.running.append(Child(job, process, gpus, now, now + given))

    def _log(self, job: Job) -> Path:
        return self.work / "logs" / f"{job.name}.log"

    def _result(self, job: Job) -> Path:
        return self.work / "results" / f"{job.name}.{'xml' if job.tests else 'json'}"

    def _look_after(self) -> None:
        look = time.monotonic() - self.looked_at > LOOK_EVERY_S
        self.looked_at = time.monotonic() if look else self.looked_at
        for child in list(self.running):
            if look:  # what it starts may leave its session, and outlive it
                child.seen |= set(descendants(child.process.pid))
            code = child.process.poll()
            if code is not None:
                self._end(child, OK if code == 0 else FAILED, "" if code == 0 else exit_of(code))
            elif time.monotonic() > child.until:
                self._end(child, FAILED, f"stopped after {time.monotonic() - child.began:.0f} s")
        if time.monotonic() - self.kept_at > KEEP_EVERY_S:
            self.keep()

    def _end(self, child: Child, state: str, why: str) -> None:
        kill(child)
        self.running.remove(child)
        record = Record(state, why, time.monotonic() - child.began, commit=self.commit)
        try:
            self._judge(child.job, record)
        except (ElementTree.ParseError, ValueError, KeyError, IndexError, TypeError) as error:
            record.state, record.why = FAILED, f"{record.why or 'its result'}: {type(error).__name__}: {error}"
        self._close(child.job, record)

    def _judge(self, job: Job, record: Record) -> None:
        """Add what the job's own result says."""
        if job.tests:
            if not self._result(job).exists():
                raise ValueError("no result was written")
            counts = tests_of(self._result(job))
            record.figures = [f"{n} {word}" for word, n in counts._asdict().items() if n]
            if record.state == OK and not counts.passed:
                record.state, record.why = SKIPPED, "no test ran"
            return
        found = self._found(job)
        if found is not None:
            self.results[job.name] = found
            record.figures = [str(figure) for figure in figures(job.name, found)]
            counted = measured_rows(found)
            if counted is not None:
                record.figures.insert(0, f"{counted[0]}/{counted[1]} rows")
                if record.state == OK and not counted[0]:
                    record.state, record.why = FAILED, "no row was measured"
        elif record.state == OK and "{out}" in job.words:
            record.state, record.why = FAILED, "no result was written"

    def _found(self, job: Job) -> dict[str, object] | None:
        if job.prints:
            return last_json(self._log(job).read_text(errors="replace").splitlines())
        given = [self._result(job), *sorted((self.work / "more" / job.name).glob("*.json"))]
        path = next((p for p in given if p.exists()), None)
        return None if path is None else dict(json.loads(path.read_text()))

    def _close(self, job: Job, record: Record) -> None:
        self.records[job.name] = record
        print(f"[{self.left():.0f} s left] {job.name}: {record.state} {record.why}", flush=True)
        self.keep()

    def keep(self) -> None:
        """Write all that is known so far, so that a driver killed at any time leaves it."""
        self.kept_at = time.monotonic()
        state = {"commit": self.commit, "jobs": {name: asdict(record) for name, record in self.records.items()}}
        write_text(self.out / STATE, json.dumps(state, indent=1))
        partial = {c.job.name: f for c in self.running if not c.job.tests and (f := readable(self._result(c.job)))}
        write_text(self.out / RESULTS, json.dumps({**self.results, **partial}))
        write_text(self.out / SUMMARY, self.table())
        write_archive(self.out / LOGS, self.work)

    def table(self) -> str:
        """One row a job: what became of it, seconds, figures with their goals."""
        lines = [f"commit {self.commit}", "| job | state | s | figures |", "| --- | --- | --- | --- |"]
        running = {child.job.name for child in self.running}
        for job in self.jobs:
            waits = Record(RUNNING if job.name in running else NOT_RUN)
            record = self.records.get(job.name, waits)
            state = f"{record.state}: {record.why}" if record.why else record.state
            lines.append(f"| {job.name} | {state} | {record.seconds:.0f} | {'; '.join(record.figures)} |")
        return "\n".join(lines) + "\n"
