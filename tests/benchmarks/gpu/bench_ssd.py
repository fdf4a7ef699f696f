"""The Mamba-2 scan with one B and C per head: our kernels against mamba-ssm at each of its chunk sizes, one run.

    python tests/benchmarks/gpu/bench_ssd.py --out ssd.json
    TRITON_INTERPRET=1 python tests/benchmarks/gpu/bench_ssd.py --tiny      # a rehearsal without a GPU

30 heads of 64, state 64, bfloat16, batch 1, dt after its softplus (as the library is fed). Both sides replay CUDA
graphs with cold second-level cache; eager times stand beside. A side is measured only where its outputs and
gradients agree with float64 at 304 tokens and, at the length, with those of the first side that was right. Our default
comes first, then mamba-ssm, whose kernels try many shapes before they run, then our other sizes. `forward` runs without
gradients: ours in segments of chunks, whose states are not written. `forward_gb` and
`both_gb` are what our kernels read and write; over `graph_ms` that is the bandwidth they reach.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from speed_clock import Bench, Row, Unavailable, bench_of, graphed, median_ms, options_of, peak_mib, said
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[3]))
from m4v.kernels.ssd_configs import CONFIGS, SEGMENTS, default_config, default_segments
from m4v.model.ssd import ssd_sequential

HEADS, SIZE = 30, 64
# Last unit with 128 text tokens: 241 frames at the full, mid and low stage; 121 frames; 57 frames; then what is longer.
LENGTHS = (15_488, 9_008, 7_568, 11_888, 8_880, 4_096, 32_768, 75_600)
LIBRARY_CHUNKS = (128, 64, 256)  # quickest first
# float64 goes token by token; a multiple of 16 as the lengths are, so that Triton compiles each kernel once.
GATE_TOKENS, GATE = 304, 4 * 2**-9
NAMES = ("y", "x", "dt", "a", "b", "c", "skip")
Scan = Callable[[Sequence[Tensor]], Tensor]


def inputs_of(length: int, device: torch.device, heads: int = HEADS) -> list[Tensor]:
    """x, dt, a, b, c and skip of one row."""
    generator = torch.Generator(device).manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, b, c = ((normal(1, length, heads, SIZE) * 0.4).to(kind) for _ in range(3))
    found = [x, F.softplus(normal(1, length, heads) - 2), -normal(heads).abs() - 0.1, b, c, normal(heads)]
    return [u.requires_grad_() for u in found]


def our_scan(config: int, segments: int | None = None) -> Scan:
    """`segments`: of the forward without gradients."""
    try:
        from m4v.kernels.ssd_operators import ssd
    except ImportError as reason:
        raise Unavailable(str(reason)) from reason
    return lambda leaves: ssd(*leaves, config=config, segments=segments)


def library_scan(chunk: int) -> Scan:
    if not torch.cuda.is_available():
        raise Unavailable("mamba-ssm needs a GPU")
    from m4v.core.errors import ConfigError
    from m4v.kernels.libraries import ssd_kernel

    try:
        kernel = ssd_kernel()
    except ConfigError as reason:
        raise Unavailable(reason.message) from reason

    def scan(leaves: Sequence[Tensor]) -> Tensor:
        x, dt, a, b, c, skip = leaves
        found: Tensor = kernel(x, dt, a, b, c, chunk, D=skip)
        return found

    return scan


def exact_scan(leaves: Sequence[Tensor]) -> Tensor:
    x, dt, a, b, c, skip = leaves
    return ssd_sequential(x, dt, a, b, c) + skip[:, None] * x


def both(scan: Scan, leaves: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    y = scan(leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, str]:
    """The largest relative error, and what it is of."""
    pairs = zip(found, expected, NAMES[: len(found)], strict=True)
    return max((float((f.double() - e.double()).norm() / e.double().norm()), name) for f, e, name in pairs)


def gate(scan: Scan, length: int, device: torch.device) -> float:
    """The error of a side against float64. Raises ValueError where it is too large, and then it is not measured."""
    tokens = min(GATE_TOKENS, length)
    # All heads: of a few, gradients per head may cancel to less than their rounding.
    leaves = inputs_of(tokens, device, heads=HEADS if device.type == "cuda" else 1)
    precise = [u.detach().double().requires_grad_() for u in leaves]
    generator = torch.Generator(device).manual_seed(tokens + 1)
    dy = torch.randn(leaves[0].shape, generator=generator, device=device).to(leaves[0].dtype)
    expected = both(exact_scan, precise, dy)
    with torch.no_grad():
        alone = worst([scan(leaves)], expected[:1])
    error, name = max(worst(both(scan, leaves, dy), expected), alone)
    if not error < GATE:
        raise ValueError(f"wrong: {name} is off by {error:.1e} from float64")
    return error


def agreement(found: Sequence[Tensor], first: Sequence[Tensor]) -> float:
    """The error of a side against the first one at the length. Raises ValueError where it is too large."""
    error, name = worst(found, first)
    if not error < 2 * GATE:
        raise ValueError(f"wrong: {name} is off by {error:.1e} from the first side")
    return error


def traffic_gb(length: int, chunk: int, segment: int | None = None) -> tuple[float, float]:
    """What our kernels move forwards without gradients and in both passes: 16-bit rows, float32 chunk states, 16-bit
    running states; in segments all states float32."""
    row, states = length * HEADS * SIZE * 2, -(-length // chunk) * HEADS * SIZE**2
    forward = (2 + 3 + 1) * row + (4 + 4 + 2 + 2) * states
    backward = (2 + 4 + 3) * row + (4 + 4 + 2 + 2 + 2) * states
    alone = forward
    if segment is not None:
        alone = (2 + 3 + 1) * row + 4 * 4 * -(-length // segment) * HEADS * SIZE**2
    return alone / 1e9, (forward + backward) / 1e9


def measured(bench: Bench, make: Callable[[], Scan], length: int, first: list[Tensor]) -> Row:
    """`first`: what the first side gives at the length; that side leaves it there."""
    scan = make()
    heads = HEADS if bench.device.type == "cuda" else 1
    row = bench.found
    begin = time.perf_counter()
    row["error"] = gate(scan, length, bench.device)
    leaves = inputs_of(length, bench.device, heads)
    generator = torch.Generator(bench.device).manual_seed(length + 1)
    dy = torch.randn(leaves[0].shape, generator=generator, device=bench.device).to(leaves[0].dtype)
    found = both(scan, leaves, dy)
    if first:
        row["from_first"] = agreement(found, first)
    first[:] = first or found
    with torch.no_grad():
        row["alone_from_first"] = agreement([scan(leaves)], first[:1])
    row["gate_s"] = time.perf_counter() - begin

    def forward() -> Tensor:
        with torch.no_grad():
            return scan(leaves)

    def backward() -> list[Tensor]:
        return both(scan, leaves, dy)

    for name, call in (("forward", forward), ("both", backward)):
        row[f"{name}_eager_ms"] = median_ms(call, bench.device, bench.repeats)
        row[f"{name}_mib"] = peak_mib(call, bench.device)
        if bench.device.type == "cuda":
            row[f"{name}_graph_ms"] = median_ms(graphed(call, bench.device), bench.device, bench.repeats)
    return row


def main() -> None:
    parser = options_of(__doc__, 400.0)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--only", default="", help="sides whose name holds this")
    options = parser.parse_args()
    bench = bench_of("ssd", options)
    for length in [5] if options.tiny else options.lengths:
        first: list[Tensor] = []
        for row, make in sides(length):
            if options.only not in row["side"]:
                continue
            bench.case(row, lambda m=make, t=length, f=first: measured(bench, m, t, f))  # type: ignore[misc]
    for tokens in dict.fromkeys(row["tokens"] for row in bench.rows):
        bench.extra[f"ratios {tokens}"] = ratios([row for row in bench.rows if row["tokens"] == tokens])
    bench.write()
    bench.table(["tokens", "side", "state", "forward_graph_ms", "both_graph_ms", "forward_eager_ms", "both_eager_ms",
                 "forward_gb", "both_gb", "gate_s", "error", "from_first"])  # fmt: skip
    for name, found in bench.extra.items():
        print(name, {key: said(value) for key, value in found.items()})


def sides(length: int) -> Iterator[tuple[Row, Callable[[], Scan]]]:
    """Most wanted first."""
    default, segments = default_config(SIZE, SIZE, exact=False), default_segments(SIZE, SIZE, exact=False)
    yield _own(length, default, segments, " (default)")
    for chunk in LIBRARY_CHUNKS:
        yield {"tokens": length, "side": f"mamba-ssm {chunk}"}, partial(library_scan, chunk)
    for number in range(len(SEGMENTS)):
        if number != segments:
            yield _own(length, default, number)
    for number in range(len(CONFIGS)):
        yield _own(length, number)


def _own(length: int, number: int, segments: int | None = None, note: str = "") -> tuple[Row, Callable[[], Scan]]:
    chunk, name, segment = CONFIGS[number].chunk, f"ours {CONFIGS[number].chunk} #{number}", None
    if segments is not None:
        segment = SEGMENTS[segments].chunk * SEGMENTS[segments].chunks
        name += f", segments of {segment} #{segments}"
    forward, total = traffic_gb(length, chunk, segment)
    row = {"tokens": length, "side": name + note, "forward_gb": forward, "both_gb": total}
    return row, partial(our_scan, number, segments)


def ratios(rows: Sequence[Row]) -> Row:
    """mamba-ssm's best chunk over our default and over our best, in graphs; goal at 15,488 tokens: 2 and 1.6."""
    found: Row = {}
    for key in ("forward_graph_ms", "both_graph_ms"):
        library = [row[key] for row in rows if row["side"].startswith("mamba") and key in row]
        own = {row["side"]: row[key] for row in rows if row["side"].startswith("ours") and key in row}
        for side, value in own.items():
            if library and (value == min(own.values()) or "default" in side):
                found[f"{key.removesuffix('_graph_ms')}: {side}"] = min(library) / value
    return found


if __name__ == "__main__":
    main()
