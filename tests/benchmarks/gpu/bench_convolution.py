"""The causal convolution with SiLU of one mixer: our kernel, causal-conv1d's and plain torch, eager and as CUDA graphs.

    python tests/benchmarks/gpu/bench_convolution.py --out convolution.json       (--tiny: a rehearsal on the CPU)

Each is held against float64 first, gradients included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from speed_clock import Bench, Row, Unavailable, bench_of, graphed, median_ms, options_of  # noqa: E402
from torch import Tensor  # noqa: E402

from m4v.kernels import use_kernels  # noqa: E402
from m4v.kernels.scan import convolves_fast  # noqa: E402
from m4v.model.mamba import CausalConv  # noqa: E402

TOKENS = (7_680, 15_616)  # the lowest and the highest stage of the last unit of 241 frames, text and registers included
CHANNELS, WIDTH, LIMIT = 1920, 4, 2 * 2**-9
COLUMNS = ("kernels", "tokens", "forward ms", "graph ms", "both ms", "both graph ms", "error", "state")
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


def measure(bench: Bench, word: str, tokens: int, channels: int) -> Row:
    conv, x, grad = drawn(tokens, channels, bench.device)
    exact = CausalConv(channels, WIDTH).to(bench.device, torch.float64)
    exact.load_state_dict(conv.state_dict())
    with use_kernels(scan="torch"):
        expected = both(exact, x.detach().double().requires_grad_(), grad.double())
    with use_kernels(scan=word):  # type: ignore[arg-type]
        if word != "torch" and not convolves_fast(x, WIDTH):
            raise Unavailable(f"no convolution with M4V_KERNELS={word} here")
        pairs = zip(both(conv, x, grad), expected, strict=True)
        error = max(float((one.double() - other).norm() / other.norm()) for one, other in pairs)
        if not error <= LIMIT:
            raise Wrong(f"off by {error:.3g}")
        bench.found["error"] = error
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


def main() -> None:
    options = options_of(__doc__, 240).parse_args()
    bench = bench_of("convolution", options)
    tiny = bench.device.type == "cpu"
    for tokens in (130,) if tiny else TOKENS:
        for name, word in FORMS:
            channels = 16 if tiny else CHANNELS
            bench.case(
                {"kernels": name, "tokens": tokens}, lambda w=word, n=tokens, c=channels: measure(bench, w, n, c)
            )
    bench.table(COLUMNS)
    bench.write()


if __name__ == "__main__":
    main()
