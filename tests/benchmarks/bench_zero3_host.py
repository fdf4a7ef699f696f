"""Host time of a step under ZeRO at real depth and tiny width: `python tests/benchmarks/bench_zero3_host.py`.

At this width the arithmetic is next to nothing, so a step costs what the program around its kernels costs. Ranks meet
through gloo, and only what the training thread itself computes is counted, not its waits. All settings take turns in
one process of each rank, step by step: ZeRO-3 that gathers the weights of blocks before each use (`gathers`; what it
keeps is scaled down from an `engine.live_elements` of 1e9 for the real size), ZeRO-3 that has room for all of them and
keeps them from update to update (`whole`), and ZeRO-2. Prints medians over steps in milliseconds, of the slowest rank,
and the median ratio of a step to the one of `gathers` beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

PACKS = 2  # of a rank and step
PARTS = ("forward", "backward", "optimizer")
SETTINGS = ("gathers", "whole", "zero2")
REAL_WIDTH, REAL_ELEMENTS = 1920, 2.2e9
LIVE, PERSISTENT = 1e9, 10_000  # elements, of the real size


def engine_of(setting: str, elements: int, width: int, dtype: str) -> dict[str, Any]:
    """`engine` settings, sizes scaled from the real model to `elements`."""
    scale = elements / REAL_ELEMENTS
    live = elements if setting == "whole" else round(LIVE * scale)
    return {
        "zero_stage": 2 if setting == "zero2" else 3, "dtype": dtype, "checkpointing": "selective",
        "live_elements": live, "param_persistence_elements": round(PERSISTENT * width / REAL_WIDTH),
        "bucket_elements": round(150_000_000 * scale), "timeout_s": 300,
    }  # fmt: skip


def rank_main(out: Path, steps: int, dtype: str, settings: list[str]) -> None:
    """One rank: every setting's step in turn; leaves its seconds."""
    import torch
    from bench_host import MODEL, arguments
    from torch.nn import functional

    from m4v.config import ModelConfig
    from m4v.model import build_model
    from training.clock import time_collectives
    from training.config import EngineConfig, OptimizerConfig
    from training.engine import DeepSpeedEngine, init_process_group
    from training.stepping import settled_heap

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    init_process_group(rank, world, 300)
    time_collectives()
    config = ModelConfig.model_validate(MODEL)
    engines, products, own = {}, {}, functional.linear
    for setting in settings:
        functional.linear = own
        model = build_model(config, 3)
        elements = sum(p.numel() for p in model.parameters())
        made = EngineConfig.model_validate(engine_of(setting, elements, config.width, dtype))
        engines[setting] = DeepSpeedEngine(model, OptimizerConfig(), made, PACKS)
        products[setting] = functional.linear  # DeepSpeed puts its own there for weights that it lets go of
    torch.manual_seed(rank)
    given = arguments(config, "cpu")

    def step(engine: DeepSpeedEngine) -> list[float]:
        spent = [0.0, 0.0, 0.0]
        for _ in range(PACKS):
            begin = time.thread_time()
            loss = torch.stack([p.float().square().mean() for p in engine(*given)]).sum()
            middle = time.thread_time()
            engine.backward(loss / 100)
            spent[0] += middle - begin
            spent[1] += time.thread_time() - middle
        begin = time.thread_time()
        engine.step(1e-4)
        spent[2] = time.thread_time() - begin
        return spent

    found: dict[str, list[list[float]]] = {setting: [] for setting in settings}
    with settled_heap():
        for number in range(steps + 3):
            for setting, engine in engines.items():
                functional.linear = products[setting]
                taken = step(engine)
                if number >= 3:  # the first ones make tables and traces
                    found[setting].append(taken)
    (out / f"{rank}.json").write_text(json.dumps(found))


def measure(ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        own = ["--rank-of", folder, "--steps", str(options.steps), "--dtype", options.dtype]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *torchrun, str(Path(__file__)), *own, "--settings", *options.settings]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        told = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    rows: dict[str, Any] = {}
    for setting in options.settings:
        every = [one[setting] for one in told]
        parts = {p: max(statistics.median(s[n] for s in r) for r in every) for n, p in enumerate(PARTS)}
        ratios = [
            sum(mine) / sum(base)
            for one in told
            for mine, base in zip(one[setting], one[options.settings[0]], strict=True)
        ]
        rows[setting] = {part: 1e3 * s for part, s in parts.items()}
        rows[setting] |= {"step": 1e3 * max(statistics.median(map(sum, r)) for r in every)}
        rows[setting] |= {"ratio": statistics.median(ratios)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of is not None:
        rank_main(options.rank_of, options.steps, options.dtype, options.settings)
        return
    found = {ranks: measure(ranks, options) for ranks in options.ranks}
    if options.json:
        print(json.dumps(found))
        return
    columns = (*PARTS, "step")
    print(f"{'ranks':>5} {'setting':<10}" + "".join(f"{c + ' ms':>14}" for c in columns) + f"{'ratio':>8}")
    for ranks, rows in found.items():
        for setting, row in rows.items():
            print(f"{ranks:>5} {setting:<10}" + "".join(f"{row[c]:>14.1f}" for c in columns) + f"{row['ratio']:>8.2f}")


if __name__ == "__main__":
    main()
