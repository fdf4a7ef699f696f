"""A model on our kernels on a gang of ranks, on GPUs or interpreted: `torchrun fused_shards_probe.py OUT steps|shared`.

Rank 0 writes {case: numbers}. `steps`: losses and norms of the gradient in turn, by "kernels, ZeRO stage,
recomputation". `shared`: how far velocities and gradients of one forward that the ranks share are from those of one
rank, by the batch: two ranks share the samples of two, and the frames of one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import torch
from fused_models import DEVICE, INTERPRETED, error, inputs, model_of, run
from torch import Tensor, distributed
from triton_interpreter import mend

from m4v.kernels import use_kernels
from m4v.model import fused
from m4v.parallel.group import SequenceGroup
from training.config import EngineConfig, OptimizerConfig
from training.engine import DeepSpeedEngine, init_process_group

CASES = [("torch", 0, "none"), ("triton", 0, "none"), ("triton", 3, "selective")]
STEPS = 2
ONE_OF_EACH = {"single_blocks": 1}


def device() -> torch.device:
    """Of this rank; `cuda` alone means it, too, from here on."""
    if INTERPRETED:
        return torch.device(DEVICE)
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())


def steps(stage: int, recompute: str) -> list[float]:
    """Each rank has samples of its own."""
    torch.manual_seed(0)
    config = EngineConfig.model_validate(
        {
            "zero_stage": stage,
            "param_persistence_elements": 0,
            "live_elements": 100,
            "checkpointing": recompute,
            "dtype": "float32",
        }
    )
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=0, clip_norm=0.5)
    engine = DeepSpeedEngine(model_of(ONE_OF_EACH), optimizer, config, 1, device())
    given = inputs(torch.float32, 1, 1, seed=engine.rank)
    found = []
    for _ in range(STEPS):
        outs = engine(**given)  # type: ignore[arg-type]
        loss = torch.stack([(out - 1).square().mean() for out in outs]).sum()
        engine.backward(loss / engine.world_size)
        total = loss.detach().clone()
        distributed.all_reduce(total)
        found += [float(total), engine.step(1e-2)]
    return found


def counting_blocks() -> list[object]:
    """Grows with every single-stream block that runs on the glue's kernels."""
    calls: list[object] = []
    plain = fused.single_block

    def counted(*arguments: Any) -> Tensor:
        calls.append(None)
        return plain(*arguments)

    fused.single_block = counted
    return calls


def sharded() -> dict[str, list[float]]:
    found, calls = {}, counting_blocks()
    for kernels, stage, recompute in CASES:
        with use_kernels(scan=kernels, glue=kernels):  # type: ignore[arg-type]
            found[f"{kernels} {stage} {recompute}"] = steps(stage, recompute)
        assert bool(calls) == (kernels == "triton"), (kernels, len(calls))
    return found


def shared() -> dict[str, list[float]]:
    found = {}
    for batch in (1, 2):
        model, given = model_of(ONE_OF_EACH), inputs(torch.float32, 1, batch)
        with use_kernels(scan="triton", glue="triton"):
            alone = run(model, given)
            model.share(SequenceGroup(distributed.get_rank(), distributed.get_world_size()))
            together = run(model, given)
        for name, value in together.items():
            if not name.startswith("output"):
                distributed.all_reduce(value)
        kinds = [{k: v for k, v in alone.items() if k.startswith("output") == outputs} for outputs in (True, False)]
        found[str(batch)] = [error(together, kind) for kind in kinds]
    return found


def main(out: Path, what: str) -> None:
    if INTERPRETED:
        mend()
    init_process_group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 300, device())
    found = sharded() if what == "steps" else shared()
    if distributed.get_rank() == 0:
        out.write_text(json.dumps(found))
    distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    distributed.destroy_process_group()
    os._exit(0)
