"""Starts, watches, kills and reads the training runs of the scaling benchmark."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from scaling_material import SIZES, SOURCE
from scaling_rank import GATE
from training_helpers import request

from m4v.core.artifacts import ArtifactKind
from training.config import TrainConfig, latents_of
from training.heartbeat import read_heartbeats
from training.preflight import Setup, estimate, gpu_of
from training.samples import SampleGroup

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "pipelines" / "recipes" / "m4v-768p.yaml"
GIB = 1 << 30
ENDLESS = 1_000_000
PARTS = ("forward", "backward", "optimizer", "communication", "save")
Timings = Mapping[str, float]


class CaseFailed(Exception):
    """A case gave no figures; the message says why."""


@dataclass(frozen=True)
class Case:
    """A stage of the recipe on a number of GPUs. `warm` steps are not counted, the next `steps` are; with `save_every`
    the run goes on to `saves` saves. `fsdp2`: on that engine, which knows the ZeRO stages 3 and 2."""

    frames: int
    ranks: int
    zero: int
    deterministic: bool = False
    warm: int = 8  # a whole cycle: what a layout needs once is made in it
    steps: int = 8
    save_every: int = 0
    saves: int = 0
    fsdp2: bool = False

    @property
    def sharding(self) -> str:
        """`zero3`, `fsdp2`, which gathers for each pass, or `fsdp2-whole`, which does once a step."""
        return {3: "fsdp2", 2: "fsdp2-whole"}[self.zero] if self.fsdp2 else f"zero{self.zero}"

    @property
    def name(self) -> str:
        return f"{self.frames}f {self.sharding} x{self.ranks}{' deterministic' if self.deterministic else ''}"

    @classmethod
    def of(cls, name: str) -> Case:
        """The case of a name such as `121f zero2 x4 deterministic`; raises ValueError on another."""
        found = re.fullmatch(r"(\d+)f (?:zero([0-3])|fsdp2(-whole)?) x(\d+)( deterministic)?", name)
        if found is None:
            raise ValueError(
                f"{name!r} is no case: say FRAMESf zeroSTAGE xRANKS, or fsdp2 or fsdp2-whole in place of zeroSTAGE, "
                "and deterministic if it is"
            )
        zero = found[2] or ("2" if found[3] else "3")
        return cls(int(found[1]), int(found[4]), int(zero), deterministic=found[5] is not None, fsdp2=found[2] is None)

    @property
    def rows(self) -> int:
        """Steps until all is known: one after the last save ends its stall."""
        return max(self.warm + self.steps, self.save_every * self.saves + 2 if self.saves else 0)


@dataclass(frozen=True)
class Place:
    """Where the benchmark works: its folder, device, size, and the GPUs that it may use."""

    folder: Path
    device: str
    size: str
    gpus: tuple[str, ...]
    packs: int  # of each rank and step

    def config(self, case: Case, asynchronous: bool = True) -> TrainConfig:
        """The recipe's stage of so many frames, without end, with the packs of the case's ranks."""
        stages = yaml.safe_load(RECIPE.read_text())["train"]
        found = TrainConfig.model_validate(next(s for s in stages if s["name"] == f"{case.frames}f"))
        backend = "fsdp2" if case.fsdp2 else "deepspeed"
        engine = {"backend": backend, "zero_stage": case.zero, "deterministic": case.deterministic, "timeout_s": 300}
        order = {"packs": self.packs * case.ranks, "image_every": 0}
        if self.size == "tiny":
            order["tokens_per_pack"] = 200
            engine["bucket_elements"] = 100_000
        changed = {
            "steps": ENDLESS, "save_every": case.save_every or ENDLESS, "async_saves": asynchronous,
            "order": found.order.model_copy(update=order), "engine": found.engine.model_copy(update=engine),
        }  # fmt: skip
        return found.model_copy(update=changed)

    def estimated_gib(self, case: Case) -> float:
        size, t = SIZES[self.size], latents_of(241)
        group = SampleGroup(SOURCE, "video", t, size.height // 8, size.width // 8, 48)
        setup = Setup("bench", size.model, self.config(case), (group,), case.ranks, gpu_of("h200"))
        found = estimate(setup)
        return 0.0 if found is None else found.memory_bytes / GIB


@dataclass
class Run:
    """One attempt at a case: torchrun in a process of its own, its folder and when it was let go."""

    case: Case
    place: Place
    attempt: int = 0
    gated: bool = True
    first_gpu: int = 0
    asynchronous: bool = True
    began: float = 0.0
    first_step_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    rows: list[Timings] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.place.folder / "cases" / f"{self.case.name.replace(' ', '-')}-gpu{self.first_gpu}"

    @property
    def work(self) -> Path:
        return self.folder / f"attempt-{self.attempt}"

    @property
    def gate(self) -> Path:
        return self.work / "gate"

    def prepare(self) -> Run:
        """Write the request and start the processes; gated ones import and wait for `go`."""
        ids = {name: (self.place.folder / f"{name}.id").read_text() for name in ("dataset", "weights")}
        inputs = [
            ("dataset", ArtifactKind.DATASET, ids["dataset"], self.place.folder / "dataset"),
            ("checkpoint", ArtifactKind.CHECKPOINT, ids["weights"], self.place.folder / "weights"),
        ]
        config = self.place.config(self.case, self.asynchronous)
        made = request(
            "train", config, self.work, inputs, ranks=self.case.ranks, attempt=f"{self.attempt:08d}",
            state=self.folder / "state", device=self.place.device, deterministic=self.case.deterministic,
        )  # fmt: skip
        made = made.model_copy(update={"resources": made.resources.model_copy(update={"workers": 4, "threads": 4})})
        (self.work / "request.json").write_text(made.model_dump_json())
        self.process = self._start()
        self.began = time.monotonic()
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        ranks, first = self.case.ranks, self.first_gpu
        environment = os.environ | {
            "OMP_NUM_THREADS": "4" if self.place.device == "cuda" else "1", "TORCHELASTIC_ERROR_FILE": "",
            "M4V_SUPERVISED": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        if self.place.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.place.gpus[first : first + ranks])
        if self.gated:
            environment[GATE] = str(self.gate)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--monitor-interval=0.1"]
        started = [*torchrun, f"--nproc-per-node={ranks}"] if ranks > 1 else []  # as the product's launchers do it
        script = Path(__file__).parent / "scaling_rank.py"
        command = [sys.executable, *started, str(script), str(self.work / "request.json")]
        with (self.work / "output.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def go(self) -> None:
        """Open the gate; seconds count from here, or from the start of the processes where there is none."""
        if self.gated:
            self.began = time.monotonic()
            self.gate.touch()

    def look(self) -> int:
        """Read the steps so far; raises CaseFailed when the run has ended."""
        assert self.process is not None
        timings = self.work / "timings.jsonl"
        text = timings.read_text() if timings.exists() else ""
        self.rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if self.rows and not self.first_step_s:
            self.first_step_s = time.monotonic() - self.began
        if self.process.poll() is not None:
            raise CaseFailed(f"the run ended with code {self.process.returncode} after {len(self.rows)} steps")
        return len(self.rows)

    def wait_for(self, rows: int, until: float) -> None:
        """Wait until so many steps are done; raises CaseFailed when the run ends, or at `until`."""
        while self.look() < rows:
            if time.monotonic() > until:
                raise CaseFailed(f"only {len(self.rows)} of {rows} steps in {time.monotonic() - self.began:.0f} s")
            time.sleep(0.02)

    def wait_for_save(self, step: int, until: float) -> None:
        """Wait until the save after `step` steps is committed."""
        while not any(row.get("step") == step and row.get("event") == "save" for row in self.saves()):
            self.look()
            if time.monotonic() > until:
                raise CaseFailed(f"the save of step {step} was not committed in time")
            time.sleep(0.05)

    def saves(self) -> list[dict[str, object]]:
        path = self.work / "saves.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def kill(self) -> None:
        """SIGKILL to every process of the run at once, and wait until they are gone and their GPUs free."""
        if self.process is None:
            return
        try:
            agent = psutil.Process(self.process.pid)
            found = [*agent.children(recursive=True), agent]
        except psutil.NoSuchProcess:
            found = []
        known = {process.pid for process in found}
        for beat in read_heartbeats(self.work):  # of ranks whose agent has gone first
            if beat.pid not in known and psutil.pid_exists(beat.pid) and self._is_ours(beat.pid):
                found.append(psutil.Process(beat.pid))
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=30)
        self.process.wait()

    def _is_ours(self, pid: int) -> bool:
        try:
            return str(self.work / "request.json") in psutil.Process(pid).cmdline()
        except psutil.Error:
            return False

    def log_tail(self, characters: int = 2500) -> str:
        log = self.work / "output.log"
        reasons = [json.loads(p.read_text()).get("message", "") for p in sorted(self.work.glob("exit.*.json"))]
        text = log.read_text(errors="replace")[-characters:] if log.exists() else ""
        return "\n".join([text, *(f"exit: {reason}" for reason in reasons if reason)])


def figures(run: Run, warm: int, steps: int) -> dict[str, float]:
    """Of the steps after the warm-up. Rates are sums over sums: steps differ in tokens, and these make whole cycles."""
    rows, ranks = run.rows[warm : warm + steps], run.case.ranks
    seconds = sum(row["total"] for row in rows)
    last = rows[-1]
    found = {
        "tokens/s/GPU": sum(row["tokens_per_second"] * row["total"] for row in rows) / seconds / ranks,
        "step s": statistics.median(row["total"] for row in rows),
        **{part: statistics.median(row[part] for row in rows) for part in PARTS[:-1]},
        "data %": 100 * sum(row["data"] for row in rows) / seconds,
        "peak GiB": last.get("gpu_peak_bytes", last["rss_peak_bytes"]) / GIB,
        "reserved GiB": last.get("gpu_reserved_bytes", 0) / GIB,
        "told GiB": run.place.estimated_gib(run.case),
        "start s": run.first_step_s,
    }  # fmt: skip
    if all("mfu" in row for row in rows):
        found["MFU %"] = 100 * sum(row["mfu"] * row["total"] for row in rows) / seconds
    return found


def stall(rows: Sequence[Timings], step: int, usual: float) -> dict[str, float]:
    """What the save after `step` steps held up: waits that the clock saw in its step and the next, and by how much
    these two and the one after were longer than usual."""
    around = [row for row in rows if step - 1 <= row["step"] <= step + 1]
    waited = sum(row["save"] for row in around[:2])
    return {"waited s": waited, "longer s": sum(row["total"] - usual for row in around)}
