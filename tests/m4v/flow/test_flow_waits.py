"""The sampler's loop never waits for the device: on `meta` tensors, which have no values, nothing can be read back, and
every copy from the CPU must be one that nobody waits for."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m4v.config import ModelConfig, SamplerConfig, ScheduleConfig
from m4v.flow.sampler import stream
from m4v.flow.schedule import PyramidSchedule
from m4v.model import M4VTransformer

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class Watch(TorchDispatchMode):
    """Notes what would wait for the device `meta` stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [u.device.type for u in tree_leaves((args, kwargs)) if isinstance(u, Tensor)]
        name = func._schema.name
        if name in WAITS and "meta" in given:
            self.waits.append(name)
        found = func(*args, **kwargs)
        made = [u.device.type for u in tree_leaves(found) if isinstance(u, Tensor)]
        if name in ("aten::_to_copy", "aten::copy_") and {"cpu", "meta"} == {*given, *made}:
            self.copies += 1
            if not (kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,))):
                self.waits.append(f"{name} {given} {made}")
        return found


def test_no_step_waits_for_the_device() -> None:
    sizes = ModelConfig(
        width=32, heads=2, double_blocks=1, single_blocks=2, latent_channels=4, text_dim=6, pooled_dim=5, text_slots=3,
        chunk_size=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = M4VTransformer(sizes).eval()
        text = SimpleNamespace(embedding=torch.zeros(1, 3, 6), mask=torch.ones(1, 3), pooled=torch.zeros(1, 5))
    steps = SamplerConfig(
        steps_first=(2, 2, 2), steps_later=(1, 1, 1), guidance_first=3.0, guidance_later=2.0, self_guidance=0.5
    )
    with Watch() as watch:
        made = stream(model, PyramidSchedule(ScheduleConfig()), steps, text, text, (3, 8, 16), [1], channels=4)  # type: ignore[arg-type]
        shapes = [tuple(frame.shape) for frame in made]
    assert shapes == [(1, 4, 1, 8, 16)] * 3
    assert watch.copies > 9, "noise and tables at least"
    assert watch.waits == []


def test_the_watch_sees_what_waits() -> None:
    with Watch() as watch:
        numbers = torch.zeros(3).to("meta")
        torch.zeros(3).to("meta", non_blocking=True)
        torch.empty(3, device="meta").copy_(torch.zeros(3), non_blocking=True)
        torch.empty(3, device="meta").copy_(torch.zeros(3))
        with suppress(RuntimeError, NotImplementedError):
            numbers.sum().item()
    assert [wait.partition(" ")[0] for wait in watch.waits] == [
        "aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense"
    ]  # fmt: skip
    assert watch.copies == 4
