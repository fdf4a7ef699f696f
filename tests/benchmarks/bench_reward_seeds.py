"""A recipe's reward stage under several seeds, and once without the reward: held-out scores and what the watch says.

    python -m torch.distributed.run --standalone --nproc-per-node=2 tests/benchmarks/bench_reward_seeds.py \
        DATASET CHECKPOINT OUT [--recipe demo] [--set reward.steps=24] [--seeds 42 43 44]

DATASET and CHECKPOINT: artifact folders (`m4v artifacts show ID`), such as a finished demo's dataset and its 241-frame
checkpoint. The stage itself runs, from start to published checkpoint, below OUT. One JSON line for each run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_helpers import request

from m4v.core.artifacts import ArtifactKind
from pipelines.recipe import load_recipe
from pipelines.stage_process import main
from training.config import RewardConfig
from training.reward.held_out import held_out_scores
from training.reward.watch import Watch

WITHOUT = 1e-9  # a weight that moves nothing: the same steps on data alone
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def runs(config: RewardConfig, seeds: list[int]) -> Iterator[tuple[str, int, RewardConfig]]:
    """(name, seed, config); the first seed once more without the reward."""
    config = config.model_copy(update={"watch": config.watch.model_copy(update={"on_alarm": "ignore"})})
    for seed in seeds:
        yield f"seed-{seed}", seed, config
    term = config.reward.model_copy(update={"weight": WITHOUT})
    yield f"seed-{seeds[0]}-without", seeds[0], config.model_copy(update={"reward": term})


def told(name: str, work: Path, config: RewardConfig, code: int) -> dict[str, object]:
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    watch = Watch(config.watch, config.save_every, rows)
    scores = [
        {"score": s.name, "before": s.before, "rise": s.rise, "interval": s.interval, "clips": s.clips}
        for s in held_out_scores(rows)
    ]
    departed = {verdict.name: verdict.departed for verdict in watch.verdicts() if verdict.departed}
    alarm = None if watch.alarm is None else watch.alarm.reasons
    return {"run": name, "exit": code, "held_out": scores, "alarm": alarm, "departed": departed}


def bench(arguments: argparse.Namespace) -> None:
    config = load_recipe(arguments.recipe, arguments.set).reward
    assert config is not None, "the recipe has no reward stage"
    folders = {"dataset": arguments.dataset, "checkpoint": arguments.checkpoint}
    inputs = [(name, ArtifactKind(name), folder.name, folder) for name, folder in folders.items()]
    distributed.destroy_process_group = lambda: None  # DeepSpeed keeps the groups it was first given
    for name, seed, changed in runs(config, arguments.seeds):
        work = arguments.out / name
        path = work / f"request-{RANK}.json"
        made = request("reward", changed, work, inputs, seed=seed, ranks=RANKS)
        path.write_text(made.model_dump_json())
        code = main([str(path)])
        if RANK == 0:
            print(json.dumps(told(name, work, changed, code)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    bench(parser.parse_args())
    sys.stdout.flush()
    os._exit(0)
