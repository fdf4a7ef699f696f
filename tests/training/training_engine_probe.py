"""Compares ZeRO stages and FSDP2 in one gang of ranks: `torchrun training_engine_probe.py OUT_DIR`.

For every stage, the third with weights that stay whole and with weights that are gathered: 3 steps, save, 2 steps;
and a second engine that resumes from the save and takes the 2 steps. Rank 0 leaves the weights, moments and norms of
both as `stage{NAME}.{straight|resumed}.safetensors`, names as in `STAGES`; as `stage{NAME}.crossed` those of an engine
of the other back end, or stage, that resumes from the save.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from m4v.core.storage import Storage
from training.config import EngineConfig, OptimizerConfig
from training.ema import Ema
from training.engine import Engine, init_process_group, open_engine
from training.saved import PARTS, Shard
from training.state import SaveManifest, StateFile, StateStore
from training.trainer import shards_of

OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=0, weight_decay=0.1, clip_norm=0.05)
PACKS = 6  # both 2 and 3 ranks divide it
GATHERS = {"param_persistence_elements": 50, "live_elements": 100}
STAGES = {
    **{f"{zero}": {"zero_stage": zero} for zero in range(4)},
    "3-gathers": {"zero_stage": 3, **GATHERS},
    "fsdp2-3": {"backend": "fsdp2", "zero_stage": 3},
    "fsdp2-2": {"backend": "fsdp2", "zero_stage": 2},
}
CROSSED = {"3-gathers": "fsdp2-3", "fsdp2-2": "3-gathers", "fsdp2-3": "fsdp2-2"}  # whose save -> who goes on


class Odd(nn.Module):
    """Sizes that no rank count divides, a parameter used late, one that is only sometimes used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 13), nn.Linear(13, 7)
        self.spare = nn.Parameter(torch.ones(5, 3))

    def forward(self, columns: list[list[Tensor]], *_: object) -> list[Tensor]:
        x = columns[0][0]
        y = self.last(torch.nn.functional.gelu(self.first(x)))
        used = self.spare.sum() if x.shape[0] % 2 else 0 * self.spare.sum()
        return [y * (1 + 0.01 * used)]


def model() -> Odd:
    torch.manual_seed(3)
    return Odd()


def take_steps(engine: Engine, ema: Ema, first: int, last: int) -> list[float]:
    norms = []
    for step in range(first, last):
        for pack in range(engine.rank, PACKS, engine.world_size):
            x = torch.randn(3 + pack, 7, generator=torch.Generator().manual_seed(100 * step + pack))
            (y,) = engine([[x]], x, x, x, x, [0])
            engine.backward((y - 2 * x).square().sum() / (33 * 7))
        norms.append(engine.step(OPTIMIZER.lr))
        ema.update(step)
    return norms


def save(states: StateStore, engine: Engine, ema: Ema, step: int) -> SaveManifest:
    own = states.write_shards(step, engine.rank, shards_of(engine, ema))
    files: list[list[dict[str, object]]] = [[]] * engine.world_size
    distributed.all_gather_object(files, [file.canonical() for file in own])
    manifest = SaveManifest(
        step=step,
        shapes=engine.shapes,
        has_ema=True,
        files=tuple(StateFile.model_validate(f) for own in files for f in own),
        metrics=(),
        lineage=((0, engine.world_size),),
    )
    if engine.rank == 0:
        states.commit(manifest)
    distributed.barrier()
    return manifest


def main(out: Path) -> None:
    init_process_group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 60)
    packs = PACKS // distributed.get_world_size()
    for stage, settings in STAGES.items():
        states = StateStore(Storage(str(out / f"state{stage}")), 4, "probe")
        engine = open_engine(model(), OPTIMIZER, EngineConfig.model_validate(settings), packs)
        ema = Ema(engine.fragments(), 0.9)
        norms = take_steps(engine, ema, 0, 3)
        middle = save(states, engine, ema, 3)
        norms += take_steps(engine, ema, 3, 5)
        keep(out, f"stage{stage}.straight", states, save(states, engine, ema, 5), norms)
        for step, name, who in ((6, "resumed", stage), (7, "crossed", CROSSED.get(stage))):
            if who is not None:
                again = model()
                again.load_state_dict(states.whole(middle, "master"))
                engine = open_engine(again, OPTIMIZER, EngineConfig.model_validate(STAGES[who]), packs)
                ema = Ema(engine.fragments(), 0.9)
                states.load_into(middle, shards_of(engine, ema))
                assert_loaded(states, middle, shards_of(engine, ema))
                engine.set_adam_step(3)
                resumed = norms[:3] + take_steps(engine, ema, 3, 5)
                keep(out, f"stage{stage}.{name}", states, save(states, engine, ema, step), resumed)


def assert_loaded(states: StateStore, manifest: SaveManifest, shards: Sequence[Shard]) -> None:
    """What this rank holds has the bytes of the save."""
    wholes = {part: states.whole(manifest, part) for part in PARTS}
    for shard in shards:
        for part, own in shard.parts():
            saved = wholes[part][shard.name].flatten()[shard.offset : shard.offset + own.numel()]
            assert torch.equal(own.view(torch.int32), saved.view(torch.int32)), (shard.name, part)


def keep(out: Path, name: str, states: StateStore, manifest: SaveManifest, norms: list[float]) -> None:
    if distributed.get_rank() == 0:
        tensors = {f"{part}.{k}": v for part in PARTS
                   for k, v in states.whole(manifest, part).items()}  # fmt: skip
        save_file({**tensors, "norms": torch.tensor(norms, dtype=torch.float64)}, out / f"{name}.safetensors")
    distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    distributed.destroy_process_group()
    os._exit(0)
