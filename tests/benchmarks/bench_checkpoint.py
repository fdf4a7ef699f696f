"""How long a save holds training up: beside the loop against a synchronous one, same state, same disk, in one run.

    python tests/benchmarks/bench_checkpoint.py [--elements 275e6] [--repeats 3] [--compute 8]

The state is one rank's share of a model: fp32 weights, two Adam moments and the average (`--elements` parameters; 275
million are the 2.2 B model's on 8 GPUs, 4.4 GB), in fragments of the size of its matrices, on the GPU when there is
one. `--compute` seconds of matrix products stand for the forward and backward of the step that follows. The stall of a
synchronous save is `begin` and `finish`; that of an asynchronous one `begin` and what `before_update` still waits. The
first asynchronous save makes the host buffers and is told apart. The saves are held against each other's bytes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from m4v.core.storage import Storage
from training.saved import Shard
from training.saving import SaveFacts, Saver
from training.state import StateStore

FRAGMENT_ELEMENTS = 5_000_000


def state_of(elements: int, device: torch.device) -> list[Shard]:
    shards = []
    for number, first in enumerate(range(0, elements, FRAGMENT_ELEMENTS)):
        count = min(FRAGMENT_ELEMENTS, elements - first)
        parts = [torch.full((count,), number + part / 4, device=device) for part in range(4)]
        shards.append(Shard(f"p{number}", 0, parts[0], (parts[1], parts[2]), parts[3]))
    return shards


def compute(seconds: float, device: torch.device) -> None:
    """Matrix products for so long."""
    a = torch.randn(1024, 1024, device=device)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        a = torch.tanh(a @ a)
        if device.type == "cuda":
            torch.cuda.synchronize()


def synchronous(saver: Saver, step: int, shards: list[Shard]) -> float:
    began = time.perf_counter()
    saver.begin(step, shards, [], synchronous=True)
    saver.finish()
    return time.perf_counter() - began


def asynchronous(saver: Saver, step: int, shards: list[Shard], seconds: float, device: torch.device) -> float:
    began = time.perf_counter()
    saver.begin(step, shards, [])
    begun = time.perf_counter() - began
    compute(seconds, device)
    began = time.perf_counter()
    saver.before_update()
    waited = time.perf_counter() - began
    saver.finish()
    return begun + waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=float, default=275e6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compute", type=float, default=8.0, help="seconds of the step after a save")
    parser.add_argument("--folder", type=Path, help="where to save; default: a temporary folder")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shards = state_of(int(options.elements), device)
    gigabytes = 4 * sum(4 * s.master.numel() for s in shards) / 1e9
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = StateStore(Storage(folder), 2, "bench")
        shapes = {s.name: tuple(s.master.shape) for s in shards}
        saver = Saver(store, 0, 1, SaveFacts(shapes, True, ((0, 1),)))
        stalls: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
        first = asynchronous(saver, 1, shards, options.compute, device)
        for turn in range(options.repeats):
            step = 2 + 2 * turn
            stalls["synchronous"].append(synchronous(saver, step, shards))
            stalls["asynchronous"].append(asynchronous(saver, step + 1, shards, options.compute, device))
            pair = [candidate.manifest for candidate in store.candidates()[:2]]
            if len({m.files[0].sha256 for m in pair if m is not None}) != 1:
                raise AssertionError("the two ways of saving gave other bytes")
    medians = {name: statistics.median(values) for name, values in stalls.items()}
    print(f"{gigabytes:.2f} GB of state on {device.type}; {options.repeats} saves of each kind, medians")
    for name, seconds in medians.items():
        print(f"{name:14}{seconds:10.3f} s stall{gigabytes / seconds:10.2f} GB/s")
    share = statistics.median(a / s for s, a in zip(*stalls.values(), strict=True))
    print(f"stall of an asynchronous save: {share:.2%} of a synchronous one; the very first: {first:.3f} s")


if __name__ == "__main__":
    main()
