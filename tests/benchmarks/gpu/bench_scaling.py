"""The 2.2 B model at 768p on 1 to 4 GPUs: speed, scaling, memory, the stall of saves, restart after a kill.

    python tests/benchmarks/gpu/bench_scaling.py --limit-s 540 --folder /dev/shm/scaling --json rows.json
    … --limit-s 290 --saves 1 --alone "121f zero3 x4" \
        --beside "121f zero3 x1" "121f zero2 x1" "241f zero3 x1" "57f zero3 x1" "121f zero3 x1 deterministic"
    … --alone "121f zero3 x4" "121f fsdp2-whole x4" "121f fsdp2 x4" "121f zero2 x4" --beside --saves 0

Every case is the product's own path: torchrun, stage process, shards, loader, engine, saver, the recipe m4v-768p's
stage with a fixed number of packs a GPU (weak scaling) and without image steps. A run has no last step: it is killed
once its figures are there. Rows come as soon as they are known, the most wanted first; what the time limit leaves no
room for is said. `start s`: from imports done (they are made while the case before runs) to the first optimizer step;
that of the restart counts from the kill and includes everything.

Runs side by side, each on a GPU of its own, load the host's cores and memory as ranks of one run do: as a reference
they say what the ranks' collectives cost, the one that is alone on the machine says what more ranks cost in all. Each
comparison names its reference. What the first save costs more than the second is pinned memory for its copy, if that
was not there in time: `longer s` of its note, and `copy` of `saves on rank 0`.

DeepSpeed's cases are `zero3`, whose weights stay whole between updates as the recipe has it, and `zero2`. torch's FSDP2
has `fsdp2-whole`, which gathers once a step as these do, and `fsdp2`, which gathers each block for each pass. All
compute under the same autocast with the same kernels; FSDP2 sends weights and gradients as float32. What its
collectives hold up is in forward, backward and optimizer: it waits on the GPU, where `communication` does not look.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training"), str(Path(__file__).parent)]

from scaling_runs import GIB, Case, CaseFailed, Place, Run, figures, stall  # noqa: E402

from pipelines.processes import become_subreaper  # noqa: E402

SAVING = Case(121, 4, 3, save_every=16, saves=2)  # the first behind the counted steps
# Alone on the machine, one after the other; then those of one GPU side by side; then FSDP2's, alone again.
ALONE = (SAVING, Case(121, 1, 3), Case(121, 2, 3), Case(121, 4, 2), Case(121, 1, 2))
BESIDE = (Case(57, 1, 3), Case(241, 1, 3), Case(121, 1, 3, deterministic=True), Case(121, 1, 3))
FSDP2 = tuple(Case(121, ranks, zero, fsdp2=True) for ranks, zero in ((4, 2), (4, 3), (1, 2), (1, 3), (2, 2), (2, 3)))
COLUMNS = (
    "tokens/s/GPU", "MFU %", "step s", "forward", "backward", "optimizer", "communication", "data %", "peak GiB",
    "reserved GiB", "told GiB", "start s",
)  # fmt: skip
SIDE = " (side by side)"
CASE_S = 45.0  # a case that has less time left than this does not start
MOST_S = 150.0  # of a case until its figures, or its saves, are there: one that hangs must not cost the others


@dataclass
class Bench:
    """The cases of one call, their deadline and what they gave."""

    place: Place
    until: float
    found: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def left(self) -> float:
        return self.until - time.monotonic()

    def deadline(self) -> float:
        """Of a part of a case that begins now."""
        return min(self.until, time.monotonic() + MOST_S)

    def started(self, run: Run) -> Run:
        self.runs.append(run)
        return run.prepare()

    def say(self, text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

    def row(self, name: str, run: Run) -> None:
        found = self.found[name] = figures(run, run.case.warm, run.case.steps)
        cells = (f"{found[key]:.4g}" if key in found else "-" for key in COLUMNS)
        print("| " + " | ".join([name, *cells]) + " |", flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def fail(self, name: str, run: Run, error: BaseException) -> None:
        self.note(f"FAILED {name}: {error}")
        print(run.log_tail(), flush=True)


def run_alone(bench: Bench, cases: Sequence[Case]) -> None:
    """One case after the other; the processes of the next import while one runs."""
    waiting: Run | None = None
    for number, case in enumerate(cases):
        run = waiting or bench.started(Run(case, bench.place))
        waiting = None
        if bench.left() < CASE_S:
            bench.note(f"SKIPPED {case.name}: no time left")
            run.kill()
            continue
        run.go()
        try:
            if number + 1 < len(cases):
                waiting = bench.started(Run(cases[number + 1], bench.place))
            run.wait_for(case.warm + case.steps, bench.deadline())
            bench.row(case.name, run)
            if case.saves:
                measure_saves(bench, run)
        except CaseFailed as error:
            bench.fail(case.name, run, error)
        except Exception as error:  # the next case may work
            traceback.print_exc()
            bench.fail(case.name, run, error)
        finally:
            run.kill()
            subprocess.Popen(["rm", "-rf", str(run.folder / "state")])  # many gigabytes of memory take a while


def measure_saves(bench: Bench, run: Run) -> None:
    """Asynchronous saves of the running case; behind the last of `SAVING` the kill and the restart, whose next save is
    a synchronous one."""
    case, usual = run.case, bench.found[run.case.name]["step s"]
    steps = [case.save_every * (n + 1) for n in range(case.saves)]
    until = bench.deadline()
    run.wait_for(case.rows, until)
    run.wait_for_save(steps[-1], until)
    stalls = [stall(run.rows, step, usual) for step in steps]
    for step, one in zip(steps, stalls, strict=True):
        bench.note(f"asynchronous save of step {step}: {said(one)} (usual step {usual:.2f} s)")
    bench.note(f"saves on rank 0: {json.dumps(run.saves())}")
    if case.saves < SAVING.saves:
        return
    killed = time.monotonic()
    run.kill()
    bench.note(f"killed with SIGKILL and gone in {time.monotonic() - killed:.1f} s")
    again = Run(
        Case(case.frames, case.ranks, case.zero, save_every=max(2, case.save_every // 3)), run.place,
        attempt=1, gated=False, asynchronous=False,
    )  # fmt: skip
    try:
        bench.started(again)
        again.began, until = killed, bench.deadline()
        again.wait_for(1, until)
        bench.note(f"kill -> first optimizer step after the restart: {again.first_step_s:.1f} s")
        bench.found["restart"] = {"start s": again.first_step_s, "first step s": again.rows[0]["total"]}
        due = again.case.save_every
        step = (int(again.rows[0]["step"]) // due + 1) * due
        again.wait_for(step - int(again.rows[0]["step"]) + 1, until)
        held = stall(again.rows, step, usual)
        share = stalls[-1]["waited s"] / held["waited s"]
        longer = max(0.0, stalls[-1]["longer s"]) / held["waited s"]
        bench.note(f"synchronous save of step {step}: {said(held)}; {json.dumps(again.saves())}")
        bench.note(
            f"stall of an asynchronous save, of a synchronous one: {share:.2%} waited, {longer:.2%} longer steps"
        )
        bench.found["saves"] = {"share": share, "longer share": longer, "synchronous s": held["waited s"]}
    except CaseFailed as error:
        bench.fail("restart", again, error)
    finally:
        again.kill()


def said(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def run_beside(bench: Bench, cases: Sequence[Case]) -> None:
    """Cases of one GPU on a GPU each, together: as many as there are GPUs, then the next."""
    together = max(1, len(bench.place.gpus))
    for first in range(0, len(cases), together):
        taken = cases[first : first + together]
        if bench.left() < CASE_S:
            bench.note(f"SKIPPED side by side: {', '.join(case.name for case in taken)}: no time left")
            return
        runs = [bench.started(Run(c, bench.place, first_gpu=n, gated=False)) for n, c in enumerate(taken)]
        until = bench.deadline()
        for run in runs:
            name = run.case.name + SIDE
            try:
                run.wait_for(run.case.warm + run.case.steps, until)
                bench.row(name, run)
            except CaseFailed as error:
                bench.fail(name, run, error)
        for run in runs:
            run.kill()


def summarise(bench: Bench) -> None:
    """Scaling efficiency: tokens/s/GPU and MFU (which counts what each step really held) against one GPU's."""
    for ways in (Case(121, 1, 3), Case(121, 1, 2), *(replace(case, ranks=1) for case in FSDP2[:2])):
        for beside in ("", SIDE):
            one = bench.found.get(ways.name + beside)
            for ranks in (2, 4):
                many = bench.found.get(replace(ways, ranks=ranks).name)
                if one and many:
                    line = f"scaling {ways.sharding} x{ranks}{', x1' + beside if beside else ''}: "
                    line += f"{many['tokens/s/GPU'] / one['tokens/s/GPU']:.1%} by tokens"
                    bench.note(line + (f", {many['MFU %'] / one['MFU %']:.1%} by MFU" if "MFU %" in one else ""))
    for case in FSDP2:
        for zero in (3, 2):
            ours = bench.found.get(Case(121, case.ranks, zero).name)
            if ours and (theirs := bench.found.get(case.name)):
                rates = f"{theirs['tokens/s/GPU'] / ours['tokens/s/GPU']:.1%} of the tokens a second"
                bench.note(f"{case.name} against zero{zero}: {rates}, {theirs['peak GiB'] - ours['peak GiB']:+.1f} GiB")
    plain = bench.found.get(Case(121, 1, 3).name + SIDE)
    fixed = bench.found.get(Case(121, 1, 3, deterministic=True).name + SIDE)
    if plain and fixed:
        bench.note(f"cost of deterministic mode: {plain['tokens/s/GPU'] / fixed['tokens/s/GPU'] - 1:.1%} of a step")


def make_material(place: Place) -> None:
    """Dataset, weights and compiled kernels, each on a GPU of its own, at once."""
    script = Path(__file__).with_name("scaling_material.py")
    works = [["kernels"], ["weights"], ["dataset"], ["kernels", "--deterministic"]]
    running = []
    for number, (what, *more) in enumerate(works):
        if (place.folder / f"{what}.id").exists() or (what == "kernels" and place.device == "cpu"):
            continue  # of an earlier call, or nothing to compile
        command = [sys.executable, str(script), what, str(place.folder), "--size", place.size, "--device", place.device]
        environment = dict(os.environ)
        if place.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = place.gpus[number % len(place.gpus)]
        log = place.folder / f"material-{number}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen([*command, *more], env=environment, stdout=stream, stderr=stream)
        running.append((what, more, process, log))
    began = time.monotonic()
    for what, more, process, log in running:
        code = process.wait()
        print(f"{' '.join([what, *more])} waited for until {time.monotonic() - began:.1f} s", flush=True)
        if code:
            print(log.read_text(errors="replace")[-2500:], flush=True)
            if what != "kernels":  # without these the cases compile for themselves
                raise SystemExit(f"{what} could not be made")


def keep_kernels(place: Place, target: Path | None) -> None:
    """Give the compiled kernels back as one archive, for `--kernels` of a later call."""
    if target is not None:
        with tarfile.open(target, "w:xz", preset=2) as archive:  # what comes back from a machine may be limited
            archive.add(place.folder / "compiled", ".")
        print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB", flush=True)


def visible_gpus(device: str) -> tuple[str, ...]:
    if device != "cuda":
        return ("",) * 4
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return tuple(named.split(","))
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    return tuple(f"{n}" for n, _ in enumerate(answer.stdout.splitlines()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=540)
    parser.add_argument("--folder", type=Path, required=True, help="some 150 GB, in memory; emptied at the end")
    parser.add_argument("--json", type=Path, help="write rows and notes here, too")
    parser.add_argument("--kernels", type=Path, help="archive of compiled kernels of an earlier call, if it is there")
    parser.add_argument("--keep-kernels", type=Path, help="write such an archive")
    parser.add_argument("--size", default="full", choices=("full", "tiny"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--packs", type=int, default=2, help="of a GPU and step")
    parser.add_argument("--keep", action="store_true", help="dataset and weights stay in the folder, for another call")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--alone", nargs="*", help="names of cases one after the other, in this order")
    parser.add_argument("--beside", nargs="*", help="names of cases of one GPU side by side, in this order")
    parser.add_argument("--saves", type=int, default=SAVING.saves, help="of the first of them; no restart behind fewer")
    parser.add_argument("--most-ranks", type=int, default=4)
    return parser.parse_args()


def chosen_of(names: Sequence[str] | None, cases: Sequence[Case]) -> list[Case]:
    """Cases by name, of `cases` where these have it; all of `cases` where no names are given."""
    known = {case.name: case for case in cases}
    return list(cases) if names is None else [known.get(name) or Case.of(name) for name in names]


def main() -> None:
    options = parsed()
    until = time.monotonic() + options.limit_s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # `timeout` leaves no process either
    become_subreaper()
    folder = options.folder.resolve()
    (folder / "compiled").mkdir(parents=True, exist_ok=True)
    if options.kernels is not None and options.kernels.exists():
        shutil.unpack_archive(options.kernels, folder / "compiled")
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[name] = str(folder / "compiled" / name.partition("_")[0].lower())
    gpus = visible_gpus(options.device)
    place = Place(folder, options.device, options.size, gpus, options.packs)
    print(f"{len(gpus)} GPUs, {shutil.disk_usage(folder).free / GIB:.0f} GiB free in {folder}", flush=True)
    bench = Bench(place, until)
    most = min(len(gpus), options.most_ranks)
    saving = replace(SAVING, saves=options.saves, save_every=SAVING.save_every if options.saves else 0)
    alone = chosen_of(options.alone, (saving, *ALONE[1:]))
    chosen = [c for c in alone if c.ranks <= most and (not options.only or options.only in c.name)]
    if options.saves and chosen and not any(case.saves for case in chosen):  # fewer GPUs than `SAVING` has ranks
        chosen[0] = replace(chosen[0], save_every=saving.save_every, saves=saving.saves)
    beside = [c for c in chosen_of(options.beside, BESIDE) if not options.only or options.only in c.name]
    last = [c for c in FSDP2 if options.alone is None and c.ranks <= most]
    last = [c for c in last if not options.only or options.only in c.name]
    try:
        make_material(place)
        print("| " + " | ".join(["case", *COLUMNS]) + " |", flush=True)
        run_alone(bench, chosen)
        run_beside(bench, beside)
        run_alone(bench, last)
    finally:
        for run in bench.runs:
            run.kill()
        summarise(bench)
        print("\n".join(["", *bench.notes]), flush=True)
        if options.json is not None:
            steps = {f"{run.folder.name}/{run.attempt}": run.rows for run in bench.runs}
            options.json.write_text(json.dumps({"rows": bench.found, "notes": bench.notes, "steps": steps}))
        keep_kernels(place, options.keep_kernels)
        shutil.rmtree(folder / "cases" if options.keep else folder, ignore_errors=True)


if __name__ == "__main__":
    main()
