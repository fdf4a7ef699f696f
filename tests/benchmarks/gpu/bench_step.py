"""A training step of the 2.2 B model at 768p on one GPU, against a reference-style loop; memory; where the host goes.

    python tests/benchmarks/gpu/bench_step.py --out step.json       (--tiny: a rehearsal on the CPU)

Same packs for all: columns of stages 0, 1, 1, 2 in one row (the recipe's), of the given length. Weights and gradients
in float32 under bfloat16 autocast. The optimizer's own part is the same everywhere: clipping by norm and fused AdamW,
whose moments fit beside the rest. The reference-style loop has attention with a dense mask, keeps of every block its
input alone, and reads the loss twice a pack. `same checkpointing` rows keep the same; `selective` is the recipe's. A
step has two packs. No engine and no data loader here: bench_scaling has the whole path.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from generation_parts import TINY  # noqa: E402
from kernel_choices import Choice, chosen, ours, plain, stock  # noqa: E402
from kernel_times import on_gpu, top_kernels  # noqa: E402
from random_model import random_model  # noqa: E402
from speed_clock import GIB, Bench, Row, bench_of, clear, options_of, print_table, synchronize  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from m4v.config import ModelConfig, Recompute  # noqa: E402
from m4v.flow.packing import history_shape  # noqa: E402
from m4v.model import M4VTransformer  # noqa: E402

STAGES = (0, 1, 1, 2)
UNITS = {57: (8, 4, 5, 8), 121: (16, 8, 9, 16), 241: (31, 15, 17, 31)}  # latent frame that each column ends with
PACKS, WARM, STEPS = 2, 2, 7
COLUMNS = (
    "loop", "frames", "tokens/s", "step s", "forward s", "host forward s", "peak GiB", "above state GiB", "loss",
    "state",
)  # fmt: skip


class Loop(NamedTuple):
    """A model, its kernels, what it keeps, and whether the loop reads every loss."""

    name: str
    mixer: str
    choice: Callable[[], Choice]
    recompute: Recompute
    reads: bool = False


REFERENCE, OURS, SAME = "reference style", "M4V, ours, selective", "M4V, ours, block"
ATTENTION, SELECTIVE = "attention, auto, block", "attention, auto, selective"
PROFILED = (OURS, SAME)
LOOPS = (  # most wanted first; those that a figure needs, then those that tune mamba-ssm's kernels
    Loop(OURS, "mm_dim", ours, "selective"),
    Loop(REFERENCE, "attention", plain, "block", reads=True),
    Loop(SELECTIVE, "attention", dict, "selective"),
    Loop(SAME, "mm_dim", ours, "block"),
    Loop(ATTENTION, "attention", dict, "block"),
    Loop("attention, ours, block", "attention", ours, "block"),
    Loop("M4V, auto, selective", "mm_dim", dict, "selective"),
    Loop("M4V, stock, block", "mm_dim", stock, "block"),
)


class Pack(NamedTuple):
    given: dict[str, Any]
    targets: list[Tensor]
    tokens: int


def pack_of(config: ModelConfig, frames: int, seed: int, device: torch.device, places: tuple[int, int]) -> Pack:
    """A pack as the collator hands it over, on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    height, width = places

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    clips = [
        [normal(1, 16, n, height >> (2 - s), width >> (2 - s)) for s, n in [*history_shape(stage, unit), (stage, 1)]]
        for stage, unit in zip(STAGES, UNITS[frames], strict=True)
    ]
    rows = len(STAGES)
    image = sum(c.shape[2] * c.shape[3] * c.shape[4] // 4 for column in clips for c in column)
    given = {
        "columns": clips, "timesteps": torch.full((rows,), 400.0, device=device),
        "text": normal(rows, config.text_slots, config.text_dim),
        "text_mask": torch.ones(rows, config.text_slots, dtype=torch.bool, device=device),
        "pooled": normal(rows, config.pooled_dim), "stages": list(STAGES),
    }  # fmt: skip
    return Pack(given, [normal(*column[-1].shape) for column in clips], image)


def loss_of(model: M4VTransformer, pack: Pack, device: torch.device) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        answers = model(**pack.given)
    errors = [(a.float() - t).square().mean() for a, t in zip(answers, pack.targets, strict=True)]
    return torch.stack(errors).mean() / PACKS


class Trainer:
    """One loop's model, optimizer and packs."""

    def __init__(self, bench: Bench, loop: Loop, frames: int) -> None:
        self.loop, self.device = loop, bench.device
        tiny = bench.device.type == "cpu"
        config = (TINY if tiny else ModelConfig()).model_copy(update={"mixer": loop.mixer})
        self.model = random_model(config, bench.device)
        self.model.recompute, self.model.recompute_blocks = loop.recompute, config.double_blocks + config.single_blocks
        self.packs = [pack_of(config, frames, n, bench.device, (8, 8) if tiny else (96, 160)) for n in range(PACKS)]
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # makes the moments
        self.tokens = sum(pack.tokens for pack in self.packs)

    def step(self, timed: Row | None = None) -> float:
        """Two packs and an update; the mean loss. With `timed` the device is waited for around every part."""
        losses = []
        for pack in self.packs:
            begin = time.perf_counter()
            loss = loss_of(self.model, pack, self.device)
            if timed is not None:
                timed["host forward s"].append(time.perf_counter() - begin)
                synchronize(self.device)
                timed["forward s"].append(time.perf_counter() - begin)
            if self.loop.reads:
                float(loss.detach())
            loss.backward()
            losses.append(loss.detach().item() if self.loop.reads else loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(sum(losses))


def measure(bench: Bench, loop: Loop, frames: int) -> Row:
    with chosen(loop.choice()):
        trainer = Trainer(bench, loop, frames)
        warm, steps = (0, 1) if bench.device.type == "cpu" else (WARM, STEPS)
        cuda = bench.device.type == "cuda"
        state = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        losses = [trainer.step() for _ in range(warm)]
        times = []
        for _ in range(steps):
            synchronize(bench.device)
            begin = time.perf_counter()
            losses.append(trainer.step())
            synchronize(bench.device)
            times.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() if cuda else 0
        parts: Row = {"forward s": [], "host forward s": []}
        trainer.step(parts)
        if loop.name in PROFILED:  # reading a profile takes as long as some steps
            bench.extra.setdefault("profile", {})[f"{loop.name}, {frames}f"] = profiled(trainer)
    if not all(torch.tensor(losses).isfinite()):
        raise ValueError(f"losses {losses}")
    step = statistics.median(times)
    return {
        "tokens/s": trainer.tokens / step, "step s": step, **{k: statistics.median(v) for k, v in parts.items()},
        "peak GiB": peak / GIB, "above state GiB": (peak - state) / GIB, "loss": losses[-1],
    }  # fmt: skip


def profiled(trainer: Trainer) -> Row:
    """One step under the profiler: how busy the GPU is and with which kernels, launches, what the host does most."""
    cuda = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    begin = time.perf_counter()
    with profile(activities=activities) as recorded:
        trainer.step()
        synchronize(trainer.device)
    wall = time.perf_counter() - begin
    events = recorded.events()
    kernels = sorted((k.time_range.start, k.time_range.end) for k in events if on_gpu(k))
    busy, last = 0.0, 0.0
    for start, end in kernels:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    span = max(kernels[-1][1] - kernels[0][0], 1.0) if kernels else 1.0
    averages = recorded.key_averages()
    launches = sum(a.count for a in averages if "LaunchKernel" in a.key or "launch_kernel" in a.key.lower())
    top = sorted(averages, key=lambda a: -a.self_cpu_time_total)[:12]
    return {
        "wall s, profiler on": wall, "kernels": len(kernels), "launches": launches,
        "GPU busy of first to last kernel": busy / span if kernels else None,
        "GPU busy s": busy / 1e6, "GPU busy s a pack": busy / 1e6 / PACKS,
        "host top, self ms": {a.key[:80]: [round(a.self_cpu_time_total / 1e3, 2), a.count] for a in top},
        "kernels top": top_kernels(events, cuda),
    }  # fmt: skip


def run(bench: Bench, options: argparse.Namespace) -> None:
    for frames in [57] if options.tiny else options.frames:
        for loop in LOOPS:
            if not options.only or options.only in loop.name:
                label = {"loop": loop.name, "frames": frames}
                bench.case(label, lambda loop=loop, frames=frames: measure(bench, loop, frames), 140)
                clear(bench.device)


def summarise(bench: Bench) -> None:
    bench.table(COLUMNS)
    table = []
    for frames in sorted({row["frames"] for row in bench.rows}):
        of = {row["loop"]: row for row in bench.rows if row["frames"] == frames}
        for mine, other, key, goal in (
            (OURS, REFERENCE, "tokens/s", "at least 2.5"), (SAME, REFERENCE, "tokens/s", ""),
            (SAME, REFERENCE, "peak GiB", "at most 0.8"), (SAME, ATTENTION, "peak GiB", "at most 0.8"),
            (SAME, ATTENTION, "above state GiB", ""), (OURS, SELECTIVE, "peak GiB", "at most 0.8"),
            (OURS, SELECTIVE, "above state GiB", ""),
        ):  # fmt: skip
            a, b = (of.get(name, {}).get(key) for name in (mine, other))
            table.append([str(frames), mine, other, key, f"{a / b:.2f}" if a and b else "not measured", goal])
            if a and b:
                bench.extra.setdefault("goals", []).append([frames, mine, other, key, a / b, goal])
    bench.write()
    for name, found in bench.extra.get("profile", {}).items():
        print(f"\n{name}: {found}")
    print_table(("frames", "loop", "against", "figure", "ratio", "goal"), table)


def main() -> None:
    parser = options_of(__doc__, 400)
    parser.add_argument("--frames", type=int, nargs="+", choices=list(UNITS), default=[121])
    parser.add_argument("--only", help="loops whose name holds this")
    options = parser.parse_args()
    bench = bench_of("step", options)
    try:
        run(bench, options)
    finally:
        summarise(bench)


if __name__ == "__main__":
    main()
