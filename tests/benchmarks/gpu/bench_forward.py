"""Where a guided forward of the whole model goes, without gradients: kernels by kind, blocks, the GPU's clock.

    python tests/benchmarks/gpu/bench_forward.py --out forward.json       (--tiny: a rehearsal on the CPU)

torch.profiler's kernels of an eager forward of both samples of guidance, by kind, which their names tell. What the
dual-stream blocks, the single-stream blocks and the rest take is read from a clock of the GPU between them. `eager` and
`graph` are medians with a pause of the host's making before each call; `sustained` is a graph replayed for some seconds
without one, as sampling does, with the median clock of the multiprocessors and the median power meanwhile: a GPU at its
limit of power lowers its clock, so a kernel that saves time may save less of it there.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from bench_generation import guided_inputs, velocity  # noqa: E402
from block_inputs import STAGES  # noqa: E402
from generation_parts import COMPILED, OURS, Form, formed, forms, model_of  # noqa: E402
from kernel_choices import chosen  # noqa: E402
from kernel_parts import kind_of  # noqa: E402
from kernel_times import on_gpu, top_kernels  # noqa: E402
from speed_clock import Bench, Row, bench_of, graphed, median_ms, options_of, synchronize  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from m4v.model import M4VTransformer  # noqa: E402

RUNS = 3
SUSTAINED_S = 3.0
GROUPS = {"dual-stream": "transformer_blocks", "single-stream": "single_transformer_blocks"}
COLUMNS = ("form", "case", "blocks", "part", "ms", "share", "state")
CASES = ((241, 2), (241, 1), (241, 0), (121, 2))
Mark = Callable[[], Any]


def by_kind(events: Any, cuda: bool) -> dict[str, float]:
    """Kind -> microseconds of kernels, or of operators on the CPU."""
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if on_gpu(event) or not cuda:
            taken = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
            found[kind_of(event.name)] += taken
    return found


def profiled(bench: Bench, label: str, call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of one forward by kind, a mean of some; the bench keeps kernels by name."""
    cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    runs = RUNS if cuda else 1
    with profile(activities=activities) as recorded:
        for _ in range(runs):
            call()
        synchronize(bench.device)
    events = recorded.events()
    bench.extra.setdefault("kernels top", {})[label] = top_kernels(events, cuda, runs)
    return {kind: value / runs / 1e3 for kind, value in by_kind(events, cuda).items()}


class Clock:
    """Marks in the GPU's stream, or of the host's clock where there is none."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks = device, dict[str, Any]()

    def mark(self, name: str) -> Mark:
        def made(*_: object) -> None:
            if self.device.type == "cuda":
                self.marks[name] = torch.cuda.Event(enable_timing=True)
                self.marks[name].record()
            else:
                self.marks[name] = time.perf_counter()

        return made

    def between(self, first: str, last: str) -> float:
        """Milliseconds."""
        synchronize(self.device)
        one, other = self.marks[first], self.marks[last]
        return float(one.elapsed_time(other) if self.device.type == "cuda" else 1e3 * (other - one))


def by_blocks(bench: Bench, model: M4VTransformer, call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of one forward in each group of blocks and around them, medians."""
    clock, found = Clock(bench.device), defaultdict[str, list[float]](list)
    handles = []
    for group, name in GROUPS.items():
        blocks = getattr(model, name)
        handles.append(blocks[0].register_forward_pre_hook(clock.mark(f"{group} begin")))
        handles.append(blocks[-1].register_forward_hook(clock.mark(f"{group} end")))
    for _ in range(RUNS):
        clock.mark("begin")()
        call()
        clock.mark("end")()
        spans = {group: clock.between(f"{group} begin", f"{group} end") for group in GROUPS}
        spans["around"] = clock.between("begin", "end") - sum(spans.values())
        for group, ms in spans.items():
            found[group].append(ms)
    for handle in handles:
        handle.remove()
    return {group: statistics.median(values) for group, values in found.items()}


def sustained(bench: Bench, call: Callable[[], object]) -> Row:
    """Milliseconds of a call in a row of them, and what the GPU's own meters say meanwhile."""
    device = torch.cuda.get_device_properties(bench.device)
    meter = subprocess.Popen(
        ["nvidia-smi", "-i", f"GPU-{device.uuid}", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits",
         "-lms", "200"], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SUSTAINED_S:
            for _ in range(4):
                call()
            synchronize(bench.device)
            count += 4
        took = time.perf_counter() - began
    finally:
        meter.terminate()
    lines = (meter.communicate()[0] or "").splitlines()
    read = [[float(u) for u in line.split(",")] for line in lines[len(lines) // 3 :] if line.count(",") == 1]
    clock, power = ([statistics.median(row[n] for row in read) for n in (0, 1)]) if read else (0.0, 0.0)
    return {"ms": 1e3 * took / count, "MHz": clock, "W": power}


def walls(bench: Bench, about: Row, call: Callable[[], object]) -> None:
    """Rows of whole forwards."""
    bench.case(about | {"part": "eager"}, lambda: {"ms": median_ms(call, bench.device, bench.repeats)})
    held: dict[str, Callable[[], object]] = {}

    def replayed() -> Row:
        held["call"] = graphed(call, bench.device)
        return {"ms": median_ms(held["call"], bench.device, bench.repeats)}

    bench.case(about | {"part": "graph"}, replayed)
    if "call" in held:
        bench.case(about | {"part": "sustained"}, lambda: sustained(bench, held["call"]))


def measure(bench: Bench, form: Form, model: M4VTransformer, frames: int, stage: int) -> None:
    about: Row = {"form": form.name, "case": f"{frames}f {STAGES[stage]}", "blocks": "all"}
    with chosen(form.choice()), formed(form, model):
        given = guided_inputs(model, frames, stage, bench.device)

        def call() -> object:
            return velocity(model, given)

        for _ in range(2):
            call()
        found: dict[str, float] = {}

        def kernels() -> Row:
            found.update(profiled(bench, f"{form.name}, {about['case']}", call))
            return {"ms": sum(found.values())}

        whole = bench.case(about | {"part": "kernels"}, kernels)
        for kind, ms in sorted(found.items(), key=lambda item: -item[1]):
            bench.rows.append(about | {"part": kind, "ms": ms, "share": ms / whole["ms"], "state": "measured"})
        for group, ms in by_blocks(bench, model, call).items():
            bench.rows.append(about | {"blocks": group, "part": "eager", "ms": ms, "state": "measured"})
        walls(bench, about, call)


def main() -> None:
    options = options_of(__doc__, 120).parse_args()
    bench = bench_of("forward", options)
    cases = ((17, 1),) if options.tiny else CASES
    try:
        for form in forms():
            if form.name not in (OURS, COMPILED):
                continue
            model = model_of(form, bench.device)
            for frames, stage in cases if form.name == OURS else cases[:1]:
                measure(bench, form, model, frames, stage)
            del model
    finally:
        bench.write()
        bench.table(COLUMNS)


if __name__ == "__main__":
    main()
