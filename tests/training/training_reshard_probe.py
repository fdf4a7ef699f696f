"""Takes steps from a save at any number of ranks: `torchrun training_reshard_probe.py OUT FIRST SAVES STAGES MODE`.

For every ZeRO stage of STAGES (`0123`, and under FSDP2 `f`, the third, and `w`, the second): resume from the save at
FIRST in OUT/state{N}, if that is not 0, and take steps up to the last of SAVES (`1,3`), saving after each of them. MODE
is `fixed` or `fast`. Rank 0 adds a line (step, loss, norm) in hexadecimal to `stage{N}.jsonl`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from m4v.core.storage import Storage
from training.config import EngineConfig, OptimizerConfig
from training.ema import Ema
from training.engine import Engine, init_process_group, open_engine
from training.saving import SaveFacts, Saver
from training.state import StateStore
from training.trainer import shards_of

OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=0, weight_decay=0.1, clip_norm=0.05)
PACKS = 4
FSDP2 = {"f": 3, "w": 2}


class Odd(nn.Module):
    """Sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.middle, self.last = nn.Linear(7, 37), nn.Linear(37, 13), nn.Linear(13, 7)

    def forward(self, columns: list[list[Tensor]], *_: object) -> list[Tensor]:
        gelu = torch.nn.functional.gelu
        return [self.last(gelu(self.middle(gelu(self.first(columns[0][0])))))]


def take_step(engine: Engine, ema: Ema, step: int, fixed: bool) -> tuple[float, float]:
    """(mean loss over all packs, gradient norm)."""
    total = torch.zeros((), dtype=torch.float64)
    rank, ranks = (0, 1) if fixed else (engine.rank, engine.world_size)
    for pack in range(rank, PACKS, ranks):
        x = torch.randn(3 + pack, 7, generator=torch.Generator().manual_seed(100 * step + pack))
        (y,) = engine([[x]], x, x, x, x, [0])
        loss = (y - x.roll(1, 1)).square().sum() / 18
        engine.backward(loss)
        total += loss.detach() if engine.rank == 0 or not fixed else 0
    norm = engine.step(OPTIMIZER.lr)
    ema.update(step)
    distributed.all_reduce(total)
    return float(total), norm


def run(out: Path, first: int, saves: list[int], stage: str, fixed: bool) -> None:
    states = StateStore(Storage(str(out / f"state{stage}")), 2, f"{first:08d}")
    newest = states.newest_verified() if first else None
    model = Odd()
    if newest is not None:
        assert newest.step == first
        model.load_state_dict(states.whole(newest, "master"))
    ranks = distributed.get_world_size()
    config = EngineConfig(
        backend="fsdp2" if stage in FSDP2 else "deepspeed", zero_stage=FSDP2[stage] if stage in FSDP2 else int(stage),
        param_persistence_elements=50, live_elements=100, fixed_order=fixed,
    )  # fmt: skip
    engine = open_engine(model, OPTIMIZER, config, PACKS if fixed else PACKS // ranks)
    ema = Ema(engine.fragments(), 0.9)
    if newest is not None:
        states.load_into(newest, shards_of(engine, ema))
        engine.set_adam_step(first)
    saver = Saver(states, engine.rank, ranks, SaveFacts(engine.shapes, True, ((first, ranks),)))
    for step in range(first, saves[-1]):
        loss, norm = take_step(engine, ema, step, fixed)
        if engine.rank == 0:
            with (out / f"stage{stage}.jsonl").open("a") as log:
                log.write(json.dumps([step, loss.hex(), norm.hex()]) + "\n")
        if step + 1 in saves:
            saver.begin(step + 1, shards_of(engine, ema), [])
            saver.finish()
    distributed.barrier()


if __name__ == "__main__":
    init_process_group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 120)
    for name in sys.argv[4]:
        run(Path(sys.argv[1]), int(sys.argv[2]), [*map(int, sys.argv[3].split(","))], name, sys.argv[5] == "fixed")
    distributed.destroy_process_group()
    os._exit(0)
