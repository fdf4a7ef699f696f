"""Peak arithmetic rates of GPUs, model FLOPs utilisation, and memory in use.

MFU = floating-point operations that the model's training needs (three forwards: activations that are computed again
do not count) / (seconds x GPUs x peak). Without a published peak there is none.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import torch

from m4v.family import AnyModel
from training.order import DataOrder
from training.preflight.gpus import PEAKS
from training.preflight.work import forward_flops
from training.streams import Stream
from training.template import Column

Shape = tuple[int, int, int, int]
TRAINING_FORWARDS = 3  # forward, and a backward of twice its operations
_TERA = 1e12


def peak_flops(name: str, dtype: str) -> int | None:
    """Peak operations a second of a GPU by CUDA's name, computing in `bfloat16` or `float32`; None when unknown."""
    peak = PEAKS.get(name)
    return None if peak is None else round(_TERA * (peak.bfloat16 if dtype == "bfloat16" else peak.float32))


def device_peak(device: torch.device, dtype: str) -> int | None:
    """Peak of this process's device; None on a CPU."""
    return peak_flops(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None


class StepCosts:
    """Operations of training steps over all ranks, by the closed form that plans use: from the first step on, and
    without a second thread, whose Python would hold up every hook of the first steps' backward passes."""

    def __init__(self, config: AnyModel, order: DataOrder) -> None:
        self._order = order
        self._forward: dict[Shape, float] = {
            shape: forward_flops(config, Column(shape[1], shape[0]), *shape[2:])
            for stream in order.streams
            for columns in stream.cycle
            for shape in shapes_of(stream, columns)
        }

    def of_step(self, step: int) -> float:
        packs = self._order.shapes(step)
        return TRAINING_FORWARDS * sum(
            x.batch * self._forward[s] for x, columns in packs for s in shapes_of(x, columns)
        )


def shapes_of(stream: Stream, columns: Sequence[Column]) -> list[Shape]:
    """One forward of each column of a pack: latent frames, pyramid stage, latent height and width."""
    return [(c.unit, c.stage, stream.h, stream.w) for c in columns]


def memory_in_use(device: torch.device) -> dict[str, int]:
    """Bytes: of the GPU what is allocated, what torch has reserved, and the highest it had allocated; of the process
    its resident set and the highest it had."""
    found = {
        "rss_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if device.type == "cuda":
        found["gpu_allocated_bytes"] = torch.cuda.memory_allocated(device)
        found["gpu_reserved_bytes"] = torch.cuda.memory_reserved(device)
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found
