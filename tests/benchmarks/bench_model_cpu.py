"""Forward and backward time of the demo-size model on one CPU core: `python tests/benchmarks/bench_model_cpu.py`.

Prints one line per case with the median of `--repeats` runs in milliseconds, or JSON with `--json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import Tensor

from m4v.config import ModelConfig
from m4v.flow.packing import history_shape
from m4v.model import build_model

# Stages of the columns and the unit (latent frames with the noisy one), latents of 128 x 192 pixels.
CASES = {
    "image, all stages": ([0, 1, 1, 2], 1),
    "57 frames, all stages": ([0, 1, 1, 2], 8),
    "57 frames, high": ([2], 8),
    "241 frames, all stages": ([0, 1, 1, 2], 31),
    "241 frames, high": ([2], 31),
}
HEIGHT, WIDTH = 16, 24


def clips(stage: int, unit: int, batch: int) -> list[Tensor]:
    sizes = [*history_shape(stage, unit), (stage, 1)]
    return [torch.randn(batch, 16, n, HEIGHT >> (2 - s), WIDTH >> (2 - s)) for s, n in sizes]


def measure(config: ModelConfig, stages: list[int], unit: int, batch: int, repeats: int) -> dict[str, float]:
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    columns, rows = [clips(s, unit, batch) for s in stages], batch * len(stages)
    mask = torch.arange(config.text_slots).expand(rows, -1) < config.text_slots // 2
    text = torch.randn(rows, config.text_slots, config.text_dim), mask, torch.randn(rows, config.pooled_dim)
    forward, both = [], []
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        loss = sum(out.square().mean() for out in model(columns, torch.full((rows,), 500.0), *text, stages))
        middle = time.perf_counter()
        loss.backward()
        if repeat > 0:
            forward.append(middle - begin)
            both.append(time.perf_counter() - begin)
    tokens = batch * sum(c.shape[2] * c.shape[3] * c.shape[4] // 4 for column in columns for c in column)
    return {
        "image_tokens": tokens,
        "forward_ms": 1e3 * statistics.median(forward),
        "forward_backward_ms": 1e3 * statistics.median(both),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--mixer", default="mm_dim")
    parser.add_argument("--ssm", default="ssd")
    parser.add_argument("--text-slots", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "width": arguments.width, "heads": arguments.heads, "double_blocks": 2, "single_blocks": 4,
            "text_dim": 384, "pooled_dim": 384, "text_slots": arguments.text_slots, "mixer": arguments.mixer,
            "ssm": arguments.ssm,
        }
    )  # fmt: skip
    results = {}
    for name, (stages, unit) in CASES.items():
        results[name] = measure(config, stages, unit, arguments.batch, arguments.repeats)
        if not arguments.json:
            r = results[name]
            print(
                f"{name:24} {r['image_tokens']:5.0f} image tokens   forward {r['forward_ms']:7.1f} ms   "
                f"forward + backward {r['forward_backward_ms']:7.1f} ms",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
