"""A model on all ranks of a gang against the same model on one: `torchrun training_parallel_probe.py OUT CASE ...`.

Rank 0 adds a line (case, largest relative difference of the velocities, of the losses, of the parameters' gradients,
and the parameter) to OUT.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

sys.path += [str(Path(__file__).parents[1] / "m4v" / folder) for folder in ("model", "wan")]

from mixer_cases import model_config, random_model
from wan_cases import random_wan

from m4v.flow.packing import history_shape
from m4v.parallel.group import SequenceGroup
from m4v.wan.columns import WanColumns

Forward = Callable[[nn.Module], list[Tensor]]
Units = tuple[tuple[int, int], ...]  # stage and frames of each column
VIDEO: Units = ((0, 3), (1, 5), (2, 1), (2, 4))  # some have fewer frames than there are ranks
IMAGE: Units = ((0, 1), (2, 1))


def pyramid(units: Units = VIDEO, **changes: object) -> tuple[nn.Module, Forward]:
    """Columns of two samples each, text masks of every kind, float64."""
    config = model_config(width=64, heads=4, **changes)
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    clips = []
    for stage, unit in units:
        sizes = [(n, 16 >> (2 - s)) for s, n in history_shape(stage, unit)] + [(1, 16 >> (2 - stage))]
        clips.append([random(2, config.latent_channels, n, side // 2, side) for n, side in sizes])
    rows = 2 * len(clips)
    text, pooled = random(rows, config.text_slots, config.text_dim), random(rows, config.pooled_dim)
    mask = torch.rand(rows, config.text_slots, generator=generator) < 0.6  # holes, an empty and a full one
    mask[0], mask[1] = True, False
    times, stages = 1000 * torch.rand(rows, generator=generator).double(), [stage for stage, _ in units]
    return random_model(config), lambda model: model(clips, times, text, mask, pooled, stages)


def wan(frames: int = 5, dtype: torch.dtype = torch.float64, **changes: object) -> tuple[nn.Module, Forward]:
    """One clip of two samples."""
    model = WanColumns.of(random_wan(heads=4, **changes)).to(dtype)
    config, generator = model.wan, torch.Generator().manual_seed(6)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    clip, text = random(2, config.latent_channels, frames, 6, 4), random(2, config.text_slots, config.text_dim)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    times = torch.tensor([200.0, 700.0], dtype=dtype)
    return model, lambda m: m([[clip]], times, text, mask, text, [0])


def recomputing(made: tuple[nn.Module, Forward], how: str) -> tuple[nn.Module, Forward]:
    settings: Any = made[0]
    settings.recompute, settings.recompute_blocks = how, 9
    return made


def autocast(made: tuple[nn.Module, Forward]) -> tuple[nn.Module, Forward]:
    """In bfloat16 as training computes it; a float32 model."""
    forward = made[1]

    def call(model: nn.Module) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [v.float() for v in forward(model)]

    return made[0], call


CASES: dict[str, Callable[[], tuple[nn.Module, Forward]]] = {
    "mm_dim": pyramid,
    "attention": lambda: pyramid(mixer="attention"),
    "both": lambda: pyramid(mixer="parallel"),
    "mamba1": lambda: pyramid(ssm="mamba1", state_size=4),
    "no closing text": lambda: pyramid(text_recomposition=False, registers=False, temporal_branch=False),
    "block": lambda: recomputing(pyramid(), "block"),
    "selective": lambda: recomputing(pyramid(), "selective"),
    "image": lambda: pyramid(IMAGE),
    "wan": wan,
    "wan attention": lambda: wan(mixer="attention"),
    "wan without text": lambda: wan(text_recomposition=False, temporal_causal=False),
    "wan image": lambda: wan(frames=1),
    "wan image attention": lambda: wan(frames=1, mixer="attention"),
    "wan float32": lambda: wan(frames=7, dtype=torch.float32),
    "wan autocast": lambda: autocast(wan(frames=7, dtype=torch.float32)),
    "wan attention autocast": lambda: autocast(wan(frames=7, dtype=torch.float32, mixer="attention")),
}


def passed(model: nn.Module, forward: Forward, parts: int) -> tuple[list[Tensor], float, dict[str, Tensor]]:
    """Velocities, loss and gradients of the model as it is; this rank's part of them where ranks share it."""
    model.zero_grad()
    velocities = forward(model)
    weights = [torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view_as(v) for v in velocities]
    loss = sum(((v - w) ** 2).sum() for v, w in zip(velocities, weights, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert parts == 1 or missing == [], missing  # ZeRO waits for a gradient of every parameter from every rank
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return velocities, float(loss.detach()), gradients


def differ(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def compare(case: str) -> list[object]:
    model, forward = CASES[case]()
    alone = passed(model, forward, 1)
    alone = (*alone[:2], {name: grad.clone() for name, grad in alone[2].items()})
    shared: Any = model
    shared.share(SequenceGroup(distributed.get_rank(), distributed.get_world_size()))
    together = passed(model, forward, distributed.get_world_size())
    worst = (0.0, "")
    largest = max(float(grad.abs().max()) for grad in alone[2].values())
    for name, gradient in together[2].items():
        distributed.all_reduce(gradient)
        exact = alone[2].get(name, torch.zeros_like(gradient))
        scale = max(float(exact.abs().max()), 1e-3 * largest)
        worst = max(worst, (float((gradient - exact).abs().max()) / scale, name))
    velocity = max(differ(a, b) for a, b in zip(together[0], alone[0], strict=True))
    return [case, velocity, abs(together[1] - alone[1]) / alone[1], *worst]


def main(out: Path, cases: list[str]) -> None:
    distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    for case in cases or list(CASES):
        line = compare(case)
        if distributed.get_rank() == 0:
            with out.open("a") as log:
                log.write(json.dumps(line) + "\n")
    distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    distributed.destroy_process_group()
    os._exit(0)
