"""What the host does for a training pack at the real depth: operators of torch, Triton launches, seconds.

    TRITON_INTERPRET=1 python tests/benchmarks/bench_launches.py        (Triton needed, no GPU)

8 dual-stream and 16 MM-DiM blocks of a tiny width, all recomputed selectively, four columns, bfloat16 autocast, on one
thread. No Triton kernel runs: its launch is counted alone, so results mean nothing and times are the host's. `library`:
every operator of our own entered through torch's library, as before m4v.kernels.operators; `direct`: as it is.
"""

from __future__ import annotations

import collections
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from m4v.config import ModelConfig
from m4v.flow.packing import history_shape
from m4v.kernels import use_kernels
from m4v.kernels.operators import Operator
from m4v.model import M4VTransformer

STAGES, UNITS, SIDE, REPEATS = (0, 1, 1, 2), (3, 2, 2, 3), 16, 5
# These move no data.
FREE = frozenset(
    ("view", "_unsafe_view", "transpose", "t", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "split",
     "split_with_sizes", "detach", "alias", "as_strided", "empty", "empty_like", "new_empty", "empty_strided",
     "view_as_real", "unbind")
)  # fmt: skip


class Counted(TorchDispatchMode):
    """Operators by name, those inside our own aside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name not in FREE:
            self.found["our own" if func.namespace == "m4v" else name] += 1
        return func(*args, **(kwargs or {}))


def pack() -> dict[str, Any]:
    generator, rows = torch.Generator().manual_seed(0), len(STAGES)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    clips = [
        [normal(1, 16, n, SIDE >> (2 - s), SIDE >> (2 - s)) for s, n in [*history_shape(stage, unit), (stage, 1)]]
        for stage, unit in zip(STAGES, UNITS, strict=True)
    ]
    return {
        "columns": clips, "timesteps": torch.full((rows,), 400.0), "text": normal(rows, 8, 64),
        "text_mask": torch.ones(rows, 8, dtype=torch.bool), "pooled": normal(rows, 32), "stages": list(STAGES),
    }  # fmt: skip


def model() -> M4VTransformer:
    made = M4VTransformer(ModelConfig(width=128, heads=2, text_dim=64, pooled_dim=32, text_slots=8))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter.data, 0, 0.02)
        parameter.grad = torch.zeros_like(parameter)
    made.recompute, made.recompute_blocks = "selective", 99
    return made


def main() -> None:
    torch.set_num_threads(1)
    made, given, launches = model(), pack(), collections.Counter[str]()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            answers = made(**given)
        sum(u.float().square().mean() for u in answers).backward()  # type: ignore[union-attr]

    with (
        use_kernels(scan="triton", glue="triton", attention="frames"),
        patch("m4v.model.attention.uses_frames", lambda *_: True),
        patch.object(InterpretedFunction, "run", lambda self, *_, **__: launches.update([self.fn.__name__])),
    ):
        step()
        launches.clear()
        with Counted() as counted:
            step()
        print(f"operators of torch {sum(counted.found.values())}: {counted.found.most_common(12)}")
        print(f"launches of Triton {sum(launches.values())}: {launches.most_common(12)}")
        times: dict[str, list[float]] = {"library": [], "direct": []}
        for _ in range(REPEATS):
            for name, call in (("library", lambda self, *u: self.library(*u)), ("direct", Operator.__call__)):
                with patch.object(Operator, "__call__", call):
                    begin = time.perf_counter()
                    step()
                    times[name].append(time.perf_counter() - begin)
    for name, seconds in times.items():
        print(f"{name}: {min(seconds):.3f} s a pack (best of {REPEATS})")


if __name__ == "__main__":
    main()
