"""One long clip on 1, 2, 4 GPUs that share its forward: agreement with one GPU, memory, time of forward and backward.

    python tests/benchmarks/gpu/bench_parallel.py --limit-s 400 --json rows.json     (--tiny: a rehearsal on CPU ranks)

The clip is Wan's at 720p and 241 frames, 61 x 45 x 80 tokens, through 30 MM-DiM blocks and one of joint attention, of
Wan 1.3B's width, in bfloat16; of each block its input alone is kept. Weights are whole on every GPU and their
gradients are not summed: this is about what the parts of a clip cost. First a small model must have the velocities
and gradients that it has on one GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch import Tensor, distributed, multiprocessing, nn  # noqa: E402

from m4v.config import ModelConfig  # noqa: E402
from m4v.model import build_model  # noqa: E402
from m4v.parallel.group import SequenceGroup  # noqa: E402

GIB = 1 << 30
WARM, STEPS = 1, 3
COLUMNS = ("part tokens", "forward s", "backward s", "of ideal %", "peak GiB", "weights GiB", "worst gradient")
BASE = {"text_dim": 64, "pooled_dim": 64, "text_slots": 128, "double_blocks": 1}
SMALL = ModelConfig.model_validate({**BASE, "width": 256, "heads": 4, "single_blocks": 3})
LONG = ModelConfig.model_validate({**BASE, "width": 1536, "heads": 12, "single_blocks": 30, "text_slots": 512})
TINY = ModelConfig.model_validate({**BASE, "width": 64, "heads": 4, "single_blocks": 2, "text_slots": 8})


def inputs(config: ModelConfig, frames: int, height: int, width: int, device: str) -> tuple[Any, ...]:
    """One clip of one column, all frames noisy; height and width in tokens."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    clip = random(1, config.latent_channels, frames, 2 * height, 2 * width)
    text, pooled = random(1, config.text_slots, config.text_dim), random(1, config.pooled_dim)
    mask = torch.arange(config.text_slots, device=device)[None] < config.text_slots // 2
    return [[clip]], torch.tensor([500.0], device=device), text, mask, pooled, [0]


def model_of(config: ModelConfig, device: str) -> Any:
    """No parameter at zero, where an untrained model has those that let its parts in."""
    model, generator = build_model(config, 1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.to(device)


def backward(model: nn.Module, given: tuple[Any, ...], device: str) -> tuple[Tensor, float, float]:
    """The velocity, and seconds of forward and backward."""
    model.zero_grad(set_to_none=True)
    marks = [now(device)]
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        (velocity,) = model(*given)
    marks.append(now(device))
    (velocity.float() - given[0][0][0]).square().mean().backward()
    marks.append(now(device))
    return velocity.detach().float(), marks[1] - marks[0], marks[2] - marks[1]


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def worst_difference(device: str, group: SequenceGroup) -> float:
    """Of the small model's gradients, the largest relative to the norm of each, from those of one rank."""
    model, given = model_of(SMALL, device), inputs(SMALL, 9, 8, 12, device)
    alone, _, _ = backward(model, given, device)
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if group.size > 1:
        model.share(group)
    velocity, _, _ = backward(model, given, device)
    worst = float((velocity - alone).norm() / alone.norm())
    largest = max(float(gradient.norm()) for gradient in exact.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and group.size > 1:
            distributed.all_reduce(parameter.grad)
        if name in exact and parameter.grad is not None:
            scale = max(float(exact[name].norm()), 1e-3 * largest)
            worst = max(worst, float((parameter.grad - exact[name]).norm()) / scale)
    return worst


def measure(rank: int, ranks: int, folder: str, tiny: bool) -> None:
    """Be one rank of a case; its figures go to `folder`."""
    device = "cpu" if tiny else "cuda"
    if not tiny:
        torch.cuda.set_device(rank)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo" if tiny else "nccl", init_method=store, rank=rank, world_size=ranks)
    group = SequenceGroup(rank, ranks)
    row: dict[str, float] = {"worst gradient": worst_difference(device, group)}
    config, size = (TINY, (7, 4, 6)) if tiny else (LONG, (61, 45, 80))
    model = model_of(config, device)
    model.recompute_blocks = config.single_blocks
    if ranks > 1:
        model.share(group)
    given, times = inputs(config, *size, device), []
    if not tiny:
        row["weights GiB"] = torch.cuda.memory_allocated() / GIB
        torch.cuda.reset_peak_memory_stats()
    for step in range(WARM + STEPS):
        _, forward_s, backward_s = backward(model, given, device)
        times += [(forward_s, backward_s)] if step >= WARM else []
    row["forward s"], row["backward s"] = (statistics.median(part) for part in zip(*times, strict=True))
    frames = max(-(-size[0] // ranks), 1)
    row["part tokens"] = frames * size[1] * size[2]
    if not tiny:
        row["peak GiB"] = torch.cuda.max_memory_allocated() / GIB
    Path(folder, f"{rank}.json").write_text(json.dumps(row))
    distributed.barrier()
    distributed.destroy_process_group()


def case(ranks: int, tiny: bool) -> dict[str, float]:
    """The largest figures of any rank."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(measure, (ranks, folder, tiny), nprocs=ranks)
        rows = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    return {name: max(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=400, help="no case starts with less than a fifth of it left")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    until, found = time.monotonic() + options.limit_s, dict[str, dict[str, float]]()
    print(f"| GPUs | {' | '.join(COLUMNS)} |", flush=True)
    most = 4 if options.tiny else torch.cuda.device_count()
    for ranks in (n for n in (4, 1, 2, 8) if n <= most):
        if until - time.monotonic() < options.limit_s / 5:
            print(f"no time left for {ranks} GPUs", flush=True)
            continue
        try:
            found[str(ranks)] = case(ranks, options.tiny)
        except Exception:  # the next case may go well
            traceback.print_exc()
    for ranks, row in sorted(found.items()):
        if "1" in found:
            one, own = (each["forward s"] + each["backward s"] for each in (found["1"], row))
            row["of ideal %"] = 100 * one / (own * int(ranks))
        cells = (f"{row[name]:.4g}" if name in row else "-" for name in COLUMNS)
        print(f"| {ranks} | {' | '.join(cells)} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
