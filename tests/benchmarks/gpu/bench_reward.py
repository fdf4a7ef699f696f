"""One reward step at real size on one GPU: memory and seconds by part, all weights random.

    python tests/benchmarks/gpu/bench_reward.py                # all states of the 2.2 B model on this GPU
    python tests/benchmarks/gpu/bench_reward.py --ranks 8      # those of one rank of eight, without communication
    python tests/benchmarks/gpu/bench_reward.py --tiny --device cpu

The stage's own objective, engine, averages and guard take the steps on packs of the recipe's sizes: 121 frames of
768 x 1280, VAE of 335 M, ViT-H/14 (HPSv2) and ViT-L/14 (CLIP). `--ranks N`: the collectives of a rank of N are
stand-ins without peers, so that shards, buckets and gathered weights have their real sizes, while values repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

from random_model import random_model
from reward_parts import Folders, Sizes, Source, make_folders, measured_objective, sizes_of
from torch import distributed

from m4v.config import CheckpointConfig, ScheduleConfig
from m4v.kernels import kernel_set
from training.clock import StepClock
from training.config import RewardConfig
from training.ema import Ema
from training.engine import DeepSpeedEngine, device_of_rank, init_process_group
from training.families.pyramid import PyramidFamily
from training.guard import Guard
from training.loader import Batch, Collator
from training.order import DataOrder
from training.reward.gradient_path import check_gradient_path
from training.stepping import Stepper

GIB = 1 << 30
CONTEXT_BYTES = 700 << 20  # of CUDA and its libraries, beside what torch reserves


class Span(NamedTuple):
    """Seconds, the most that was allocated at any moment, and what is allocated and reserved at the end (GiB)."""

    seconds: float
    peak: float
    held: float
    reserved: float


@dataclass
class Parts:
    """What happens between marks; nothing is measured while `on` is not set."""

    device: torch.device
    on: bool = True
    spans: dict[str, Span] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)

    def mark(self, name: str) -> None:
        """What happened since the last mark is `name`; of several such spans seconds add up and peaks are the most."""
        if not self.on:
            return
        synchronise(self.device)
        before = self.spans.get(name, Span(0, 0, 0, 0))
        seconds = before.seconds + time.perf_counter() - self._began
        self.spans[name] = Span(seconds, max(before.peak, peak_gib(self.device)), *now_gib(self.device))
        self.start()

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def table(self) -> Iterator[str]:
        yield f"{'part':28} {'s':>7} {'peak GiB':>9} {'held':>7} {'reserved':>9}"
        for name, span in self.spans.items():
            yield f"{name:28} {span.seconds:7.2f} {span.peak:9.2f} {span.held:7.2f} {span.reserved:9.2f}"


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0


def now_gib(device: torch.device) -> tuple[float, float]:
    """Allocated and reserved."""
    if device.type != "cuda":
        return 0.0, 0.0
    return torch.cuda.memory_allocated() / GIB, torch.cuda.memory_reserved() / GIB


class MeasuredEngine(DeepSpeedEngine):
    """The product's engine, with marks after backward and step."""

    parts: Parts

    def backward(self, loss: torch.Tensor) -> None:
        self.parts.mark("surrogate of the reward")
        super().backward(loss)
        self.parts.mark("backward")

    def step(self, *args: Any, **kwargs: Any) -> float:
        self.parts.mark("means over ranks")
        norm = super().step(*args, **kwargs)
        self.parts.mark("optimizer step")
        return norm


def join(ranks: int, device: torch.device) -> None:
    """A process group of this process alone, or as rank 0 of `ranks` without peers."""
    if ranks == 1:
        init_process_group(0, 1, 600, device)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)})
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)


def stepper_of(config: RewardConfig, sizes: Sizes, folders: Folders, parts: Parts) -> tuple[Stepper, Collator]:
    """All that a rank of the stage holds, loaded in the order of `training.session`."""
    device, family = parts.device, PyramidFamily(CheckpointConfig(model=sizes.model, schedule=ScheduleConfig()))
    source = Source(sizes)
    order = DataOrder(source.rows, config.order, 7, config.name)
    parts.start()
    model = random_model(sizes.model, device)
    parts.mark("weights, float32")
    objective = measured_objective(config, family.schedule, folders, str(device), parts.mark)
    parts.mark("VAE, ViT-H, ViT-L")
    check_gradient_path(objective.codec, objective.rewards, str(device))
    parts.mark("check of the gradient's path")
    MeasuredEngine.parts = parts
    engine = MeasuredEngine(
        model, config.optimizer, config.engine, config.order.packs // distributed.get_world_size(), device
    )
    parts.mark(f"engine, ZeRO-{config.engine.zero_stage}")
    ema = Ema(engine.fragments(), config.ema_decay) if config.ema_decay > 0 else None
    parts.mark("EMA")
    guard = Guard(config.guard)
    stepper = Stepper(config, order, objective, engine, ema, guard, {}, lambda: None)
    collate = Collator(
        store=source, packing=family, null_text=source.null_text, seed=7, stage=config.name,  # type: ignore[arg-type]
        text_drop=config.text_drop, high_window=objective.high_window, with_captions=True,
    )  # fmt: skip
    return stepper, collate


def batches(stepper: Stepper, collate: Collator, step: int) -> list[Batch]:
    """This rank's packs of a step, on its device."""
    places = range(0, stepper.config.order.packs, distributed.get_world_size())
    return [collate(stepper.order.pack(step, place)).to(stepper.engine.device) for place in places]


def take(stepper: Stepper, step: int, data: Sequence[Batch]) -> tuple[dict[str, Any], float]:
    """One step as the trainer takes it: its row of the metrics, and seconds."""
    began = time.perf_counter()
    with StepClock(stepper.engine.device) as clock:
        outcome = stepper.take(step, data, clock, drain=False)
        timing = clock.read()
    seconds = time.perf_counter() - began
    return {**outcome.row, "forward_s": timing.forward, "backward_s": timing.backward, "optimizer_s": timing.optimizer,
            "verdict": outcome.verdict.action}, seconds  # fmt: skip


def check(row: Mapping[str, Any]) -> None:
    """The step was taken and the reward's gradient reached the velocity: raises SystemExit when not."""
    for name in ("loss", "grad_norm", "reward", "reward_gradient", "flow_gradient"):
        if not isinstance(row[name], float) or row[name] == 0:
            raise SystemExit(f"{name} of the step is {row[name]}")
    if row["verdict"] != "take":
        raise SystemExit(f"the step was not taken: {row['verdict']}")


def steps(stepper: Stepper, collate: Collator, parts: Parts, count: int) -> Iterator[dict[str, Any]]:
    """The first step compiles, parts are those of the second, the others are timed whole."""
    loaded = dict(parts.spans)
    for step in range(count):
        data = batches(stepper, collate, step)
        if step <= 1:
            parts.spans = dict(loaded)
        parts.on = step <= 1
        synchronise(parts.device)
        parts.start()
        row, seconds = take(stepper, step, data)
        peak = peak_gib(parts.device)
        parts.mark("EMA, the step's row")
        check(row)
        print(f"step {step}: {seconds:.2f} s ({len(data)} packs of {row['tokens'] // stepper.config.order.packs:,} "
              f"tokens): forward and reward {row['forward_s']:.2f}, backward {row['backward_s']:.2f}, optimizer "
              f"{row['optimizer_s']:.2f}; peak {peak:.2f} GiB; loss {row['loss']:.4g}, reward {row['reward']:.4g}; at "
              f"the velocity the reward's gradient {row['reward_gradient']:.3g}, the flow loss's "
              f"{row['flow_gradient']:.3g}; norm {row['grad_norm']:.4g}", flush=True)  # fmt: skip
        yield {"seconds": seconds, "peak_gib": peak, **row}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = device_of_rank(options.device)
    limit(device, options.limit_gib)
    join(options.ranks, device)
    sizes = sizes_of(options.tiny)
    config = sizes.config(options.ranks, options.packs, options.zero, options.ema)
    parts, fits = Parts(device), True
    taken: list[dict[str, Any]] = []
    try:
        stepper, collate = stepper_of(config, sizes, make_folders(options.folder, sizes, device), parts)
        for row in steps(stepper, collate, parts, options.steps):
            taken.append(row)
    except torch.OutOfMemoryError as error:
        fits = False
        print(f"does not fit: {str(error).splitlines()[0][:200]}", flush=True)
    print(*parts.table(), sep="\n", flush=True)
    found: dict[str, Any] = {
        "ranks": options.ranks, "zero_stage": options.zero, "ema": options.ema, "packs_per_rank": options.packs,
        "fits": fits, "limit_gib": options.limit_gib, "steps": taken,
        "parts": {name: span._asdict() for name, span in parts.spans.items()},
    }  # fmt: skip
    return found | (on_device(found) if device.type == "cuda" else {})


def limit(device: torch.device, gib: float) -> None:
    """Let torch take no more than a GPU of so much memory has left beside CUDA's own."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        room = min(whole, round(gib * GIB)) - CONTEXT_BYTES
        torch.cuda.set_per_process_memory_fraction(room / whole)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {kernel_set('cuda')}; torch may take "
              f"{room / GIB:.1f} GiB", flush=True)  # fmt: skip


def on_device(found: Mapping[str, Any]) -> dict[str, Any]:
    """Totals, which are printed too."""
    free, whole = torch.cuda.mem_get_info()
    spans = [*found["parts"].values(), *({"peak": step["peak_gib"]} for step in found["steps"])]
    told = {
        "device": torch.cuda.get_device_name(), "peak_gib": max(span["peak"] for span in spans),
        "reserved_gib": torch.cuda.memory_reserved() / GIB, "used_on_device_gib": (whole - free) / GIB,
    }  # fmt: skip
    print(f"{'fits' if found['fits'] else 'DOES NOT FIT'} {found['limit_gib']:.0f} GiB, states of one of "
          f"{found['ranks']} ranks, ZeRO-{found['zero_stage']}, EMA {found['ema']:g}: peak {told['peak_gib']:.2f} GiB "
          f"allocated, {told['reserved_gib']:.2f} reserved, {told['used_on_device_gib']:.2f} in use on the device",
          flush=True)  # fmt: skip
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds, to try it out")
    parser.add_argument("--ranks", type=int, default=1, help="shards of the states; more than one has no peers")
    parser.add_argument("--packs", type=int, default=2, help="packs of this rank in a step: 2 on 64 GPUs, 16 on 8")
    parser.add_argument("--zero", type=int, default=3)
    parser.add_argument("--ema", type=float, default=0.9999, help="0: no averages")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit-gib", type=float, default=79.0, help="memory of the GPU that is to hold it")
    parser.add_argument("--folder", type=Path, required=True, help="weights are made here, and kept for the next run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
