"""What torch.profiler recorded, summed by kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

MOST, NAME_LENGTH = 40, 200


def on_gpu(event: Any) -> bool:
    """Whether an event is work of the GPU itself: a kernel or a copy, no range around some."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


def top_kernels(events: Iterable[Any], cuda: bool, runs: int = 1) -> list[dict[str, Any]]:
    """The `MOST` that take longest, by name, with milliseconds and launches a run and their share of all; without a
    GPU the operators."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        if cuda and not on_gpu(event):
            continue
        taken = found[event.name[:NAME_LENGTH]]
        taken[0] += (event.time_range.end - event.time_range.start) if cuda else event.self_cpu_time_total
        taken[1] += 1
    total = sum(microseconds for microseconds, _ in found.values()) or 1.0
    longest = sorted(found.items(), key=lambda item: -item[1][0])[:MOST]
    return [
        {"kernel": name, "ms": time / runs / 1e3, "launches": count / runs, "share": time / total}
        for name, (time, count) in longest
    ]
