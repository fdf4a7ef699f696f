"""Frame-causal attention of the dual-stream blocks: ours against what torch offers, all in one run.

    python tests/benchmarks/gpu/bench_attention.py --out attention.json
    python tests/benchmarks/gpu/bench_attention.py --tiny      # a rehearsal on the CPU

30 heads of 64, bfloat16, batch 1, 128 text slots of which a third are pads; last units at 768p. Eager and CUDA graph,
cold second-level cache. A way is measured only where its result and gradients agree with the dense mask in float64 on
one head (cuDNN without a mask computes something else and is the yardstick of speed). `visible_tflops` counts only
scores that the mask leaves; `first_s` is all until the first gradients at full size are there: compilation for the
gate's one head and for all, and the plans of cuDNN.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from block_inputs import Case
from speed_clock import (
    Bench,
    Row,
    Unavailable,
    bench_of,
    clear,
    graphed,
    median_ms,
    options_of,
    peak_mib,
    synchronize,
)  # fmt: skip
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[3]))
from m4v.kernels.blocks import attend_blocks
from m4v.kernels.frames import attend_frames
from m4v.kernels.frames_plan import frame_plan
from m4v.model.attention import AttentionContext, attend, attention_blocks, attention_frames, attention_masks
from m4v.model.layout import BatchLayout

HEADS, SIZE, GATE = 30, 64, 4 * 2**-9
CASES = [(241, 2), (121, 2), (241, 1), (241, 0), (57, 2), (121, 1), (121, 0), (57, 1), (57, 0)]  # frames, stage
GROUP_ROWS = (1920, 960, 3840, 10**9)  # the last one: our own kernel alone
TINY_ROWS = (8, 10**9)
# Of FlexAttention's templates: forward, then backward.
TUNED = {
    "128x64": {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 3},
    "128x128": {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 128, "fwd_num_warps": 8, "fwd_num_stages": 3},
    "64x64": {
        "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3,
        "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64, "bwd_num_warps": 4,
        "bwd_num_stages": 3,
    },
}  # fmt: skip
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways(
    layout: BatchLayout, valid: Tensor, rows_tried: Sequence[int], tuned: bool
) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Name and maker of each way from q, k, v (b, L, H, size) to (b, L, H size)."""
    yield "cuDNN, no mask", unmasked
    for rows in rows_tried:
        name = "ours, corner kernel alone" if rows == rows_tried[-1] else f"ours, groups of {rows}"
        yield name, lambda rows=rows: ours(layout, valid, rows)
    yield "FlexAttention as it ships", lambda: flex(layout, valid, None)
    if tuned:
        for name, options in TUNED.items():
            yield f"FlexAttention {name}", lambda options=options: flex(layout, valid, options)
        yield "FlexAttention max-autotune", lambda: flex(layout, valid, {})
    yield "dense mask, as released", lambda: dense(layout, valid)


def unmasked() -> Way:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION if q.is_cuda else SDPBackend.MATH):
            out = F.scaled_dot_product_attention(*(u.transpose(1, 2) for u in (q, k, v)))
        return out.transpose(1, 2).flatten(2)

    return run


def ours(layout: BatchLayout, valid: Tensor, rows: int) -> Way:
    shape = attention_frames(layout, valid, True)
    return lambda q, k, v: attend_frames(q, k, v, shape, rows)


def dense(layout: BatchLayout, valid: Tensor) -> Way:
    context = AttentionContext(layout, torch.empty(0), attention_masks(layout, valid, True, _kind(valid.device)))
    return lambda q, k, v: attend(q, k, v, context)


def flex(layout: BatchLayout, valid: Tensor, options: dict[str, int] | None) -> Way:
    """As the product has it (None), with given blocks, or with those that the compiler finds best (none given)."""
    if not valid.is_cuda:
        raise Unavailable("FlexAttention is compiled with Triton")
    mask = attention_blocks(layout, valid, True)
    if options is None:
        return lambda q, k, v: attend_blocks(q, k, v, mask)
    from torch.nn.attention.flex_attention import flex_attention

    mode = None if options else "max-autotune-no-cudagraphs"
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True, mode=mode)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = (u.transpose(1, 2) for u in (q, k, v))
        out: Tensor = compiled(*turned, block_mask=mask, kernel_options=options or None)
        return out.transpose(1, 2).flatten(2)

    return run


def _kind(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def given(tokens: int, heads: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """q, k, v (1, tokens, heads, size) and the gradient of the result."""
    generator = torch.Generator(device).manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(_kind(device))

    return [normal(1, tokens, heads, SIZE).requires_grad_() for _ in range(3)], normal(1, tokens, heads * SIZE)


def exact(layout: BatchLayout, valid: Tensor, leaves: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    wide = [u.detach().double().requires_grad_() for u in leaves]
    masks = attention_masks(layout, valid, True, torch.float64)
    out = attend(*wide, AttentionContext(layout, torch.empty(0), masks))
    return [out.detach(), *torch.autograd.grad(out, wide, weight.double())]


def measure(bench: Bench, make: Callable[[], Way], layout: BatchLayout, right: list[Tensor] | None, seen: int) -> Row:
    """Gate (unless `right` is None), then times of forward, and of forward and backward."""
    device, tokens = bench.device, layout.text_tokens + layout.image_tokens
    synchronize(device)
    begin, row = time.perf_counter(), bench.found
    run = make()
    if right is not None:
        small, weight = given(tokens, 1, device)
        out = run(*small)
        found = [out, *torch.autograd.grad(out, small, weight)]
        row["error"] = max(float((f.double() - r).norm() / r.norm()) for f, r in zip(found, right, strict=True))
        if row["error"] > GATE:
            return row | {"state": f"refused: error {row['error']:.1e} above {GATE:.1e}"}
    leaves, weight = given(tokens, HEADS if device.type == "cuda" else 2, device)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(*leaves)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves), leaves, weight)

    both()
    synchronize(device)
    row["first_s"] = time.perf_counter() - begin
    for name, call in (("forward", forward), ("both", both)):
        row[f"{name}_ms"] = median_ms(call, device, bench.repeats)
        row[f"{name}_mib"] = peak_mib(call, device)
        try:
            row[f"{name}_graph_ms"] = median_ms(graphed(call, device), device, bench.repeats)
        except Unavailable:
            pass
        except RuntimeError as reason:
            row[f"{name}_graph"] = f"not captured: {str(reason).splitlines()[0][:100]}"
        if name == "forward":
            best = min(row["forward_ms"], row.get("forward_graph_ms", float("inf")))
            row["visible_tflops"] = 4e-9 * SIZE * leaves[0].shape[2] * seen / best
    return row


def main() -> None:
    options = options_of(__doc__, 520).parse_args()
    bench = bench_of("attention", options)
    torch._dynamo.config.recompile_limit = 64  # every case has its own mask
    for frames, stage in CASES[:1] + CASES[-1:] if options.tiny else CASES:
        case = Case(frames, stage, options.tiny)
        layout = BatchLayout((case.setting.column(),), case.base.text_slots)
        slots, tokens = layout.text_slots, layout.text_tokens + layout.image_tokens
        valid = (torch.arange(slots, device=bench.device) < slots * 2 // 3)[None, None]
        right: list[Tensor] = []

        def reference(layout: BatchLayout = layout, valid: Tensor = valid, right: list[Tensor] = right) -> Row:
            small, weight = given(layout.text_tokens + layout.image_tokens, 1, bench.device)
            right += exact(layout, valid, small, weight)
            return {"state": "computed"}

        if bench.case({"case": case.name, "way": "float64, one head"}, reference)["state"] != "computed":
            continue  # nothing can be told to be right
        own = layout.columns[0].frame_tokens
        seen = frame_plan(tuple(own), (len(own),), slots, GROUP_ROWS[0]).columns[0].scores[0]
        tuned = (frames, stage) == CASES[0] and not options.tiny
        for name, make in ways(layout, valid, TINY_ROWS if options.tiny else GROUP_ROWS, tuned):
            about = {"case": case.name, "tokens": tokens, "visible": seen / tokens**2, "way": name}
            gate = None if name.startswith("cuDNN") else right
            bench.case(about, lambda make=make, gate=gate: measure(bench, make, layout, gate, seen))  # noqa: B023
            torch._dynamo.reset()
        right.clear()
        clear(bench.device)
    bench.table(
        ("case", "way", "forward_ms", "forward_graph_ms", "both_ms", "both_graph_ms", "visible_tflops", "error",
         "first_s", "state")
    )  # fmt: skip


if __name__ == "__main__":
    main()
