"""One single-stream block at 768p: M4V's against attention's and mamba-ssm's, forward and forward with backward.

    python tests/benchmarks/gpu/bench_blocks.py --out blocks.json       (--tiny: a rehearsal on the CPU)

All in one process: width 1920, 30 heads of 64, bfloat16 weights (what steers the recurrence in float32), one sample,
text, registers and both directions of the composition included; medians of at least 20 after warm-up, second-level
cache cold. Our blocks and their arguments are taken from the product's own transformer. Before it is timed, every
variant must agree with its float64 twin in plain torch, gradients included; every mode must agree with eager. `eager`
and `compiled` (static shapes) are launched by the host, `graph` is a replayed CUDA graph; forward runs without
gradients. First the last unit of 241 frames at the high stage, then all stages of 241, 121 and 57 frames.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from block_inputs import Case, Piece  # noqa: E402
from block_variants import GOALS, M4V, OURS_ATTENTION, Goal, Mode, Variant, compiled, variants  # noqa: E402
from kernel_choices import chosen  # noqa: E402
from speed_clock import Bench, Row, bench_of, clear, graphed, median_ms, options_of, peak_mib, print_table  # noqa: E402
from torch import Tensor  # noqa: E402

COLUMNS = ("case", "tokens", "variant", "mode", "fwd ms", "fwd+bwd ms", "step MiB", "compile s", "error", "state")
GATE = Case(57, 0)  # where float64 attention fits
# Of a result's, and of a gradient's norm (bfloat16 through a whole block). Gradients below a thousandth of the largest
# parameter's are compared with that.
RESULT_LIMIT, GRADIENT_LIMIT, FLOOR = 0.03, 0.08, 1e-3
FIRST = (241, 2)
REST = ((241, 0), (241, 1), (121, 2), (57, 2), (121, 1), (121, 0), (57, 1), (57, 0))


class Wrong(Exception):
    """A variant does not compute what it should."""


def answers(piece: Piece) -> list[Tensor | None]:
    """What the block adds to x, gradient of x, gradients of the parameters by name."""
    return [piece.forward() - piece.x, *piece.forward_backward()]


def errors(found: list[Tensor | None], exact: list[Tensor | None], what: str) -> list[float]:
    """Relative error of each result; raises Wrong where one is missing."""
    scale = max((float(e.double().norm()) for e in exact[2:] if e is not None), default=0.0)
    told = []
    for number, (one, other) in enumerate(zip(found, exact, strict=True)):
        if one is None or other is None:
            if one is not other:
                raise Wrong(f"{what}: result {number} is there on one side alone")
            told.append(0.0)
            continue
        norm = float(other.double().norm())
        distance = float((one.double() - other.double()).norm())
        told.append(distance / (max(norm, FLOOR * scale) if number else norm))
    return told


def worst_of(found: list[float], usual: list[float] | None, what: str) -> float:
    """The worst error; raises Wrong past the limits, or half as much again as `usual` where that is more."""
    for number, error in enumerate(found):
        limit = GRADIENT_LIMIT if number else RESULT_LIMIT
        if usual is not None:
            limit = max(limit, 1.5 * usual[number])
        if not error <= limit:
            raise Wrong(f"{what}: result {number} is off by {error:.3g}")
    return max(found)


def gate(variant: Variant, case: Case, device: torch.device) -> list[float]:
    """The variant's errors, eager, against its float64 twin. Raises Wrong past what rounding may cost, which plain
    torch in the same precision tells. The module of mamba-ssm has other parameters than its twin: its result and the
    gradient of x alone are compared."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    piece = variant.make(case, device, dtype)
    twin = variant.exact(piece, case)
    twin.gradient = piece.gradient.double()
    given = [piece, twin] if variant.plain is None else [piece, twin, variant.plain(case, device, dtype)]
    found = []
    for one in given:
        with chosen(one.choice):
            found.append(answers(one))
    if [p.shape for p in piece.parameters] != [p.shape for p in twin.parameters]:
        found = [results[:2] for results in found]
    told = [errors(results, found[1], "float64") for results in (found[0], *found[2:])]
    worst_of(told[0], told[1] if len(told) > 1 else None, "float64")
    return told[0]


def measure(
    bench: Bench, piece: Piece, mode: Mode, backend: str, eager: list[Tensor | None] | None, usual: list[float]
) -> Row:
    """Times of one mode; `eager`: what the same block gives eagerly (a `stand_in` where its own form does not fit),
    whose `usual` errors the mode may have, too."""
    found = bench.found
    with chosen(piece.choice):
        timed = compiled(piece, backend) if mode.startswith("compiled") else piece
        begin = time.perf_counter()
        if eager is not None:
            found["against eager"] = worst_of(errors(answers(timed), eager, mode), usual, mode)
        if timed is not piece:
            found["compile s"] = time.perf_counter() - begin
        calls: Any = (timed.forward, timed.forward_backward)
        if mode.endswith("graph"):
            calls = (graphed(call, bench.device) for call in calls)
        for key, call in zip(("fwd ms", "fwd+bwd ms"), calls, strict=True):
            found[key] = median_ms(call, bench.device, bench.repeats)
        if not mode.endswith("graph"):
            found["step MiB"] = peak_mib(timed.forward_backward, bench.device)
    return found


def run_variant(bench: Bench, variant: Variant, case: Case, backend: str) -> None:
    """Gate, then every mode."""
    label = {"case": case.name, "tokens": case.tokens, "variant": variant.name}
    usual: list[float] = []

    def gated() -> Row:
        usual[:] = gate(variant, GATE._replace(tiny=case.tiny), bench.device)
        if variant.linear and (case.frames, case.stage) == FIRST:
            clear(bench.device)
            usual[:] = map(max, usual, gate(variant, case, bench.device))
        return {"error": max(usual)}

    if bench.case({**label, "mode": "gate"}, gated)["state"] != "measured":
        return  # no figures of what is wrong or cannot be
    held: dict[str, Any] = {}
    for mode in variant.modes:

        def timed(mode: Mode = mode) -> Row:
            if not held:
                dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
                held["piece"] = variant.make(case, bench.device, dtype)
                one = held["piece"] if variant.stand_in is None else variant.stand_in(case, bench.device, dtype)
                with chosen(one.choice):
                    held["eager"] = answers(one)
            reference = held["eager"] if mode.startswith("compiled") else None
            bench.found["error"] = max(usual)
            return measure(bench, held["piece"], mode, backend, reference, usual)

        bench.case({**label, "mode": mode}, timed)
    held.clear()
    clear(bench.device)
    torch._dynamo.reset()


def best(rows: list[Row], case: str, variant: str, modes: tuple[Mode, ...] | None, key: str) -> Row | None:
    found = [
        row for row in rows
        if row["case"] == case and row["variant"] == variant and key in row and (modes is None or row["mode"] in modes)
    ]  # fmt: skip
    return min(found, key=lambda row: row[key], default=None)


def compare(bench: Bench, goal: Goal, case: str) -> list[str]:
    """A row of the goals' table, which the JSON keeps too."""
    cells, kept = [goal.variant, goal.against], {"variant": goal.variant, "against": goal.against, "case": case}
    for key, wanted in (("fwd ms", goal.forward), ("fwd+bwd ms", goal.both)):
        mine = best(bench.rows, case, goal.variant, None, key)
        other = best(bench.rows, case, goal.against, goal.modes, key)
        if mine is None or other is None:
            cells.append("not measured")
            continue
        ratio = other[key] / mine[key]
        met = f", goal {wanted}: {'met' if ratio >= wanted else 'not met'}" if wanted else ""
        modes = f"{other[key]:.2f} {other['mode']} / {mine[key]:.2f} {mine['mode']}"
        cells.append(f"{ratio:.2f}x ({modes}{met})")
        kept[key] = {"ratio": ratio, "goal": wanted or None, "modes": [mine["mode"], other["mode"]]}
    bench.extra.setdefault("goals", []).append(kept)
    return cells


def summarise(bench: Bench) -> None:
    bench.table(COLUMNS)
    first = Case(*FIRST).name
    attention = sorted({r["variant"] for r in bench.rows if r["variant"].startswith(OURS_ATTENTION)})
    goals = [*GOALS, *(Goal(M4V, name, ("eager", "compiled"), 0.0, 0.0) for name in attention)]
    table = [["241f high", *compare(bench, goal, first)] for goal in goals]
    cases = dict.fromkeys(row["case"] for row in bench.rows if row["case"] != first)
    table += [
        [case, *compare(bench, goal._replace(forward=0.0, both=0.0), case)] for case in cases for goal in GOALS[1:]
    ]
    bench.write()
    print_table(
        ("case", "block", "against", "fwd", "fwd+bwd"), [row for row in table if row[3:] != ["not measured"] * 2]
    )


def main() -> None:
    parser = options_of(__doc__, 540)
    parser.add_argument("--only", help="variants whose name holds this")
    parser.add_argument("--cases", choices=("all", "first", "rest"), default="all")
    parser.add_argument("--backend", help="of torch.compile")
    options = parser.parse_args()
    bench = bench_of("blocks", options)
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 64
    backend = options.backend or ("eager" if options.tiny else "inductor")
    try:
        run(bench, options, backend)
    finally:
        summarise(bench)


def run(bench: Bench, options: argparse.Namespace, backend: str) -> None:
    places = {"all": (FIRST, *REST), "first": (FIRST,), "rest": REST}[options.cases]
    for frames, stage in places:
        case = Case(frames, stage, options.tiny)
        for variant in variants(everything=(frames, stage) == FIRST):
            if not options.only or options.only in variant.name:
                run_variant(bench, variant, case, backend)


if __name__ == "__main__":
    main()
