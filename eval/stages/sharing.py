"""How many processes and ranks share the videos of one stage: every video is one process's, so none changes a byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from m4v.core.stage import StageContext

WAIT_S = 1.0
ItemT = TypeVar("ItemT")


def sampling_devices(context: StageContext) -> list[str]:
    """A device for each sampling process of this rank.

    On the CPU as many as workers or threads; on GPUs `workers` of this host's, one each, or the rank's own where
    there are several ranks.
    """
    resources = context.resources
    if resources.device == "cpu":
        return ["cpu"] * max(resources.workers, resources.threads)
    if context.world_size > 1:
        return [f"{resources.device}:{os.environ.get('LOCAL_RANK', '0')}"]
    if resources.workers == 1:
        return [resources.device]
    import torch

    count = min(resources.workers, torch.cuda.device_count())
    return [f"{resources.device}:{number}" for number in range(count)]


def use_device(device: str) -> None:
    """Make `cuda:N` the process's current device: kernels that are launched by themselves go there."""
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(torch.device(device))


def own_share(jobs: Sequence[ItemT], context: StageContext) -> list[ItemT]:
    """What this rank makes: fixed by its number, whatever is finished already."""
    return list(jobs[context.rank :: context.world_size])


def wait_for_others(
    context: StageContext, jobs: Sequence[ItemT], is_finished: Callable[[ItemT], bool], pause: Callable[[float], None]
) -> Iterator[int]:
    """Yield how many of `jobs` are finished until all are; raises Drained as `check_drain` does. One rank alone waits
    for nobody."""
    for number, job in enumerate(jobs if context.world_size > 1 else ()):
        while not is_finished(job):
            yield number
            context.check_drain()
            pause(WAIT_S)
