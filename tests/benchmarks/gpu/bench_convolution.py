"""The causal convolution with SiLU of one mixer: our kernel, causal-conv1d's and plain torch, eager and as CUDA graphs;
then our kernel's configurations, each way by itself, beside copies of as many bytes.

    python tests/benchmarks/gpu/bench_convolution.py --out convolution.json       (--tiny: a rehearsal on the CPU)

Each is held against float64 first, gradients included. With TRITON_INTERPRET=1 the rehearsal runs our kernel, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from speed_clock import (  # noqa: E402
    Bench,
    Row,
    Unavailable,
    bench_of,
    graphed,
    median_ms,
    options_of,
    print_table,
    said,
)
from torch import Tensor  # noqa: E402

from m4v.kernels import use_kernels  # noqa: E402
from m4v.kernels.scan import convolves_fast  # noqa: E402
from m4v.kernels.selection import TRITON, interpreted, version_of  # noqa: E402
from m4v.model.mamba import CausalConv  # noqa: E402

# The highest and the lowest stage of the last unit of 241 frames, text and registers included, and a short one.
TOKENS = (15_616, 7_680, 1_500)
CHANNELS, WIDTH, LIMIT = 1920, 4, 2 * 2**-9  # a block convolves the values alone
COLUMNS = ("kernels", "tokens", "forward ms", "graph ms", "both ms", "both graph ms", "error", "state")
OF_CONFIGS = ("kernels", "tokens", "rows", "alone ms", "of a copy's rate", "error", "state")
FORMS = (("ours", "triton"), ("causal-conv1d", "mamba_ssm"), ("plain torch", "torch"))


class Wrong(Exception):
    """A kernel does not compute what it should."""


def drawn(tokens: int, channels: int, device: torch.device) -> tuple[CausalConv, Tensor, Tensor]:
    """A convolution with random taps, its input and a gradient of its output."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    conv = CausalConv(channels, WIDTH).to(device)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    x, grad = (torch.randn(1, tokens, channels, generator=generator, device=device).to(dtype) for _ in range(2))
    return conv.to(dtype), x.requires_grad_(), grad


def both(conv: CausalConv, x: Tensor, grad: Tensor) -> list[Tensor]:
    out = conv(x)
    return [out, *torch.autograd.grad(out, [x, conv.weight, conv.bias], grad)]


def exact(conv: CausalConv, x: Tensor, grad: Tensor) -> list[Tensor]:
    """`both` in float64 and plain torch."""
    double = CausalConv(x.shape[-1], WIDTH).to(x.device, torch.float64)
    double.load_state_dict(conv.state_dict())
    with use_kernels(scan="torch"):
        return both(double, x.detach().double().requires_grad_(), grad.double())


def error_of(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative distance. Raises Wrong when it is too large."""
    pairs = zip(found, expected, strict=True)
    error = max(float((one.double() - other).norm() / other.norm()) for one, other in pairs)
    if not error <= LIMIT:
        raise Wrong(f"off by {error:.3g}")
    return error


def measure(bench: Bench, word: str, tokens: int, channels: int) -> Row:
    conv, x, grad = drawn(tokens, channels, bench.device)
    expected = exact(conv, x, grad)
    with use_kernels(scan=word):  # type: ignore[arg-type]
        if word != "torch" and not convolves_fast(x, WIDTH):
            raise Unavailable(f"no convolution with M4V_KERNELS={word} here")
        bench.found["error"] = error_of(both(conv, x, grad), expected)
        for name, call in calls(conv, x, grad):
            bench.found[f"{name} ms"] = median_ms(call, bench.device, bench.repeats)
            if bench.device.type == "cuda":
                key = "graph ms" if name == "forward" else "both graph ms"
                bench.found[key] = median_ms(graphed(call, bench.device), bench.device, bench.repeats)
    return bench.found


def calls(conv: CausalConv, x: Tensor, grad: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    def forward() -> Tensor:
        with torch.no_grad():
            return conv(x)  # type: ignore[no-any-return]

    yield "forward", forward
    yield "both", lambda: both(conv, x, grad)


def alone(bench: Bench, way: str, number: int, tokens: int, channels: int) -> Row:
    """One configuration one way, as a graph where there is one, beside the copy of x (forward: one tensor read, one
    written) or the sum of x and the gradient (backward: two read, one written)."""
    from m4v.kernels.convolution import BACKWARD, FORWARD, backward_with, config_of, forward_with

    conv, x, grad = drawn(tokens, channels, bench.device)
    expected, out = exact(conv, x, grad), torch.empty_like(grad)
    given = (x.detach(), conv.weight.detach(), conv.bias.detach(), None)
    config = config_of((FORWARD if way == "forward" else BACKWARD)[number], x)
    bench.found["rows"] = config.rows
    if way == "forward":
        bench.found["error"] = error_of([forward_with(config, *given)], expected[:1])
    else:
        bench.found["error"] = error_of(list(backward_with(config, grad, *given)), expected[1:])

    def call() -> object:
        return forward_with(config, *given) if way == "forward" else backward_with(config, grad, *given)

    def copy() -> object:
        return out.copy_(given[0]) if way == "forward" else torch.add(given[0], grad, out=out)

    taken = [graphed(u, bench.device) if bench.device.type == "cuda" else u for u in (call, copy)]
    mine, least = (median_ms(u, bench.device, bench.repeats) for u in taken)
    return bench.found | {"alone ms": mine, "copy ms": least, "of a copy's rate": least / mine}


def configurations(bench: Bench, tokens: int, channels: int) -> Iterator[Row]:
    """A row for each configuration each way."""
    if version_of(TRITON) is None or not (bench.device.type == "cuda" or interpreted()):
        return
    from m4v.kernels.convolution import BACKWARD, FORWARD

    for way, configs in (("forward", FORWARD), ("backward", BACKWARD)):
        for number, config in enumerate(configs):
            row = {"kernels": f"ours {way} {'/'.join(str(int(size)) for size in config)}", "tokens": tokens}
            yield bench.case(row, lambda w=way, n=number: alone(bench, w, n, tokens, channels))  # type: ignore[misc]


def main() -> None:
    options = options_of(__doc__, 240).parse_args()
    bench = bench_of("convolution", options)
    tiny = bench.device.type == "cpu"
    sizes, channels = ((130,), 16) if tiny else (TOKENS, CHANNELS)
    for tokens in sizes:
        for name, word in FORMS:
            bench.case({"kernels": name, "tokens": tokens}, lambda w=word, n=tokens: measure(bench, w, n, channels))
    bench.table(COLUMNS)
    found = [row for n in (*sizes[:1], *sizes[2:]) for row in configurations(bench, n, channels)]
    print_table(OF_CONFIGS, [[said(row.get(column, "")) for column in OF_CONFIGS] for row in found])
    bench.write()


if __name__ == "__main__":
    main()
