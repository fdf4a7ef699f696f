"""Where the time of one MM-DiM block goes: kernels by part of the block, forward and backward, beside the roofline.

    python tests/benchmarks/gpu/bench_budget.py --out budget.json       (--tiny: a rehearsal on the CPU)

torch.profiler's kernels, each counted to the module (or, inside the mixer, to the kind of kernel) whose forward
launched it or the operator whose backward it is. The roofline's rates are measured here: a matrix product of the
block's own shape, and a copy. `wall` is the median of the whole, launched by the host and as a CUDA graph: what it has
more than the kernels' sum is waiting. Last unit of 241 frames at the high stage, bfloat16, one sample.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from block_inputs import Case, Piece, captured  # noqa: E402
from kernel_choices import Choice, chosen, ours, stock  # noqa: E402
from kernel_parts import LABEL, kind_of, labelled, module_of  # noqa: E402
from kernel_times import top_kernels  # noqa: E402
from speed_clock import Bench, Row, bench_of, graphed, median_ms, options_of  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

RUNS = 10
COLUMNS = ("kernels", "part", "forward ms", "backward ms", "roofline fwd ms", "times the roofline", "state")


def part_of(module: str, kernel: str) -> str:
    """The budget's part of a kernel launched in a module of the block ("" for the block itself)."""
    if module.startswith("temporal"):
        return "temporal branch"
    if module.startswith("norm"):
        return "AdaLN"
    return kind_of(kernel)


def by_part(events: Any, cuda: bool) -> dict[tuple[str, bool], float]:
    """(part, whether of backward) -> microseconds of kernels, or of operators on the CPU."""
    forward_module: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _backward_of(event):
            forward_module[event.sequence_nr] = module_of(event)  # a later one is the operator further in
    found: dict[tuple[str, bool], float] = defaultdict(float)
    for event in events:
        kernels = [(k.name, k.duration) for k in event.kernels] if cuda else [(event.name, event.self_cpu_time_total)]
        kernels = [(name, time) for name, time in kernels if not name.startswith(LABEL)]  # a range's shadow on the GPU
        behind = _backward_of(event)
        module = forward_module.get(behind.sequence_nr, "") if behind is not None else module_of(event)
        for name, microseconds in kernels:
            found[part_of(module, name), behind is not None] += microseconds
    return found


def _backward_of(event: Any) -> Any:
    """The backward function around an event, if any."""
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return event
        event = event.cpu_parent
    return None


def profiled(bench: Bench, piece: Piece, name: str) -> dict[tuple[str, bool], float]:
    """Milliseconds by part of one forward and backward, a mean of some runs; the bench keeps kernels by name."""
    cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    runs = RUNS if cuda else 1
    for _ in range(3):
        piece.forward_backward()
    with ExitStack() as stack:
        labelled(piece.block, stack)
        with profile(activities=activities) as recorded:
            for _ in range(runs):
                piece.forward_backward()
            if cuda:
                torch.cuda.synchronize()
    events = recorded.events()
    bench.extra.setdefault("kernels top", {})[name] = top_kernels(events, cuda, runs)
    return {key: value / runs / 1e3 for key, value in by_part(events, cuda).items()}


def rates(bench: Bench, case: Case) -> dict[str, float]:
    """Operations a second of a matrix product of the block's shape, bytes a second of a copy (read and written)."""
    width, dtype = case.base.width, torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    rows = torch.randn(case.tokens, width, device=bench.device, dtype=dtype)
    weight = torch.randn(width, 4 * width, device=bench.device, dtype=dtype)
    product = median_ms(lambda: rows @ weight, bench.device, bench.repeats)
    source = torch.empty((1 << 30 if bench.device.type == "cuda" else 1 << 20), dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    copied = median_ms(lambda: target.copy_(source), bench.device, bench.repeats)
    return {
        "operations/s": 2 * rows.numel() * weight.shape[1] / product * 1e3,
        "bytes/s": 2 * source.numel() / copied * 1e3,
    }  # fmt: skip


def roofline(case: Case, rate: dict[str, float]) -> dict[str, float]:
    """Least forward milliseconds of each part, bfloat16. A part that can be part of a neighbour's kernel still has its
    own reads and writes here. One pass reads or writes a tensor of all tokens and the width."""
    config, column = case.base, case.setting.column()
    width, tokens = config.width, case.tokens
    sequence = tokens + column.frames + config.text_slots
    one_pass = 2 * tokens * width / rate["bytes/s"] * 1e3

    def products(multiply_adds: float) -> float:
        return 2 * multiply_adds / rate["operations/s"] * 1e3

    pieces = column.frames - 1 + (1 << 2 * case.stage)
    places = column.lowest[0] * column.lowest[1]
    mixer = 4 * sequence * width**2 + tokens * width * config.heads
    return {
        "GEMMs": products(mixer + (4 + 5) * tokens * width**2),
        "SSD": 4 * one_pass * sequence / tokens,  # C, B, x in; y out: more than its products take
        "convolution": 2 * one_pass,
        "composition": 8 * one_pass,  # C, B and x there, y back; each read and written
        "norms and rotation": 4 * one_pass,  # C and B, read and written
        "AdaLN": 2 * one_pass,
        "temporal branch": products(3 * pieces * places * width**2 + 2 * pieces**2 * places * width) + 2 * one_pass,
    }  # fmt: skip


def budget(bench: Bench, name: str, choice: Choice, case: Case, rate: dict[str, float]) -> None:
    """Rows of one set of kernels."""
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32

    def measured() -> Row:
        with chosen(choice):
            piece = captured(case.base, case, bench.device, dtype, choice)
            parts = profiled(bench, piece, name)
            walls = {
                "eager": [median_ms(c, bench.device, bench.repeats) for c in (piece.forward, piece.forward_backward)]
            }
            try:
                calls = [graphed(call, bench.device) for call in (piece.forward, piece.forward_backward)]
                walls["graph"] = [median_ms(call, bench.device, bench.repeats) for call in calls]
            except Exception as error:
                bench.extra.setdefault("notes", []).append(f"{name}: no graph: {error}")
        least = roofline(case, rate)
        bench.extra.setdefault("parts", {})[name] = {
            part: {"forward ms": parts.get((part, False), 0.0), "backward ms": parts.get((part, True), 0.0),
                   "roofline ms": least.get(part)}
            for part in sorted({part for part, _ in parts})
        }  # fmt: skip
        bench.extra.setdefault("walls", {})[name] = walls
        return {"forward ms": sum(v for (_, back), v in parts.items() if not back),
                "backward ms": sum(v for (_, back), v in parts.items() if back),
                "roofline fwd ms": sum(least.values())}  # fmt: skip

    bench.case({"kernels": name, "part": "all kernels"}, measured)


def shown(bench: Bench) -> None:
    """The parts as rows behind their sums, then the walls."""
    for name, parts in bench.extra.get("parts", {}).items():
        for part, times in sorted(parts.items(), key=lambda item: -item[1]["forward ms"]):
            row = {
                "kernels": name,
                "part": part,
                "forward ms": times["forward ms"],
                "backward ms": times["backward ms"],
            }
            if times["roofline ms"]:
                row["roofline fwd ms"] = times["roofline ms"]
                row["times the roofline"] = times["forward ms"] / times["roofline ms"]
            bench.rows.append(row | {"state": "measured"})
        for mode, (forward, both) in bench.extra["walls"][name].items():
            bench.rows.append({
                "kernels": name, "part": f"wall, {mode}", "forward ms": forward, "backward ms": both - forward,
                "state": "measured, backward: both less forward",
            })  # fmt: skip
    bench.write()
    bench.table(COLUMNS)
    for note in bench.extra.get("notes", []):
        print(note)
    print({name: f"{value:.4g}" for name, value in bench.extra.get("rates", {}).items()})


def main() -> None:
    options = options_of(__doc__, 120).parse_args()
    bench = bench_of("budget", options)
    case = Case(241, 2, options.tiny)
    try:
        rate = bench.extra["rates"] = rates(bench, case)
        budget(bench, "ours", ours(), case, rate)
        budget(bench, "auto", {}, case, rate)
        budget(bench, "stock", stock(), case, rate)
    finally:
        shown(bench)


if __name__ == "__main__":
    main()
