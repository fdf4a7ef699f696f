"""Host time of forward and backward at real depth and tiny width: `python tests/benchmarks/bench_host.py`.

At this width the arithmetic is next to nothing, so a pack costs what the program around its kernels costs. All modes
take turns in one process: `none`, `block`, `selective` and `selective, torch`, the same choice by torch's dispatch
modes. Prints CPU milliseconds of this process (others do not count; on a GPU its waits do) and operator calls of one
pack, or JSON with `--json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from m4v.config import ModelConfig
from m4v.flow.packing import history_shape
from m4v.model import M4VTransformer, build_model, transformer

MODEL = {
    "width": 32, "heads": 2, "double_blocks": 8, "single_blocks": 16, "text_dim": 16, "pooled_dim": 16,
    "text_slots": 16, "chunk_size": 64, "mlp_ratio": 2,
}  # fmt: skip
STAGES, UNIT = [0, 1, 2], 16  # 121 frames
HEIGHT, WIDTH = 8, 8
BY_TORCH = "selective, torch"
MODES = ("none", "block", BY_TORCH, "selective")
ATEN = torch.ops.aten
DEAR = {
    ATEN.mm.default, ATEN.addmm.default, ATEN._scaled_dot_product_flash_attention.default,
    ATEN._scaled_dot_product_efficient_attention.default, ATEN._scaled_dot_product_cudnn_attention.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
}  # fmt: skip


def policy(_: object, operator: object, *arguments: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def by_torch(block: Callable[..., Any], _: object, *arguments: object) -> Any:
    """`run_block` with torch's contexts, which see every operator."""
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def arguments(config: ModelConfig, device: str) -> tuple[Any, ...]:
    count = len(STAGES)
    sizes = [[*history_shape(stage, UNIT), (stage, 1)] for stage in STAGES]
    clips = [[torch.randn(1, 16, n, HEIGHT >> (2 - s), WIDTH >> (2 - s)) for s, n in of] for of in sizes]
    text = torch.randn(count, config.text_slots, config.text_dim), torch.ones(count, config.text_slots)
    rest = (torch.full((count,), 500.0), *text, torch.randn(count, config.pooled_dim))
    return [[clip.to(device) for clip in of] for of in clips], *(x.to(device) for x in rest), STAGES


def forward(model: M4VTransformer, mode: str, given: tuple[Any, ...]) -> Tensor:
    own = transformer.run_block
    model.recompute_blocks = 0 if mode == "none" else MODEL["double_blocks"] + MODEL["single_blocks"]
    model.recompute = "block" if mode == "block" else "selective"
    if mode == BY_TORCH:
        transformer.run_block = by_torch
    try:
        with torch.autocast(given[1].device.type, torch.bfloat16):
            return torch.stack([p.float().square().mean() for p in model(*given)]).sum()
    finally:
        transformer.run_block = own


def timed(model: M4VTransformer, mode: str, given: tuple[Any, ...]) -> tuple[float, float]:
    """CPU milliseconds of forward and of both."""
    model.zero_grad(set_to_none=True)
    if given[1].is_cuda:
        torch.cuda.synchronize()
    begin = time.process_time()
    loss = forward(model, mode, given)
    middle = time.process_time()
    loss.backward()
    return 1e3 * (middle - begin), 1e3 * (time.process_time() - begin)


def calls(model: M4VTransformer, mode: str, given: tuple[Any, ...]) -> tuple[int, int, Counter[str]]:
    """Operator calls of forward and of backward, and all of them by operator."""
    with Calls() as first:
        loss = forward(model, mode, given)
    with Calls() as second:
        loss.backward()
    return first.found.total(), second.found.total(), first.found + second.found


def measure(repeats: int, mixer: str, device: str) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**MODEL, "mixer": mixer})
    model, given = build_model(config).to(device), arguments(config, device)
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    for repeat in range(repeats + 1):
        for mode in MODES:
            taken = timed(model, mode, given)
            if repeat > 0:  # the first makes tables
                times[mode].append(taken)
    rows: dict[str, dict[str, float]] = {}
    for mode in MODES:
        ahead, back, _ = calls(model, mode, given)
        both = statistics.median(t[1] for t in times[mode])
        rows[mode] = {
            "forward_ms": statistics.median(t[0] for t in times[mode]), "both_ms": both,
            "forward_calls": ahead, "backward_calls": back,
            "of_torch": both / statistics.median(t[1] for t in times[BY_TORCH]),
        }  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--mixer", default=ModelConfig.model_fields["mixer"].default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given.repeats, given.mixer, given.device)
    if given.json:
        print(
            json.dumps(
                {
                    "model": MODEL,
                    "mixer": given.mixer,
                    "device": given.device,
                    "stages": STAGES,
                    "unit": UNIT,
                    "modes": rows,
                }
            )
        )
        return
    print(f"{'kept':<20}{'forward ms':>12}{'both ms':>10}{'calls forward':>15}{'backward':>10}{'of torch':>10}")
    for mode, row in rows.items():
        print(
            f"{mode:<20}{row['forward_ms']:>12.1f}{row['both_ms']:>10.1f}{row['forward_calls']:>15}"
            f"{row['backward_calls']:>10}{row['of_torch']:>10.2f}"
        )


if __name__ == "__main__":
    main()
