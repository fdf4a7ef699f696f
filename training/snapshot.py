"""A copy of the state of one step in host memory, made while the next step's forward and backward run.

Weights, moments and averages change in the optimiser step only, so a copy that begins after one step need not be
over before the next update: `settle` is what the training loop waits for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from training.saved import Shard

_log = logging.getLogger(__name__)


class Snapshot:
    """Host copies of shards in buffers that are made once: pinned where the shards lie on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._ready: torch.cuda.Event | None = None
        self._settled = threading.Event()
        self._settled.set()
        self._making: threading.Thread | None = None
        self._complete, self._closed = False, threading.Event()

    @property
    def has_buffers(self) -> bool:
        """Whether all buffers for a copy are there. While they are being made, writing from the GPU is sooner over."""
        return self._complete

    def prepare(self, shards: Sequence[Shard]) -> None:
        """Make the buffers for shards on a GPU on a thread, ahead of the first copy. Pinning memory holds up every call
        of the GPU's driver, and at the start, where kernels compile, there are few."""
        self._making = threading.Thread(target=self._make, args=(shards,), name="pin", daemon=True)
        self._making.start()

    def close(self) -> None:
        """Make no further buffers ahead of time."""
        self._closed.set()
        if self._making is not None:
            self._making.join()

    def _make(self, shards: Sequence[Shard]) -> None:
        try:
            with torch.cuda.device(shards[0].master.device):  # a new thread would open another GPU
                for shard in shards:
                    if self._closed.is_set():
                        return
                    for part, tensor in shard.parts():
                        self._buffer(shard.name, part, tensor)
            self._complete = True
        except RuntimeError as error:  # the first save beside the training asks again, and then it counts
            _log.warning("no host memory could be pinned for saves ahead of the first one: %s", error)
            self._buffers.clear()

    def begin(self, shards: Sequence[Shard]) -> None:
        """Mark the moment whose values are meant; called by the training loop, before `copy`."""
        device = shards[0].master.device if shards else torch.device("cpu")
        if device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(device)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(device))
        self._settled.clear()

    def copy(self, shards: Sequence[Shard]) -> list[Shard]:
        """The copies; called by another thread, once after each `begin`."""
        try:
            if self._making is not None:
                self._making.join()  # what it could not make is asked for again below, and raises here
            if self._stream is None:
                copies = [self._copied(shard) for shard in shards]
            else:
                with torch.cuda.stream(self._stream):
                    assert self._ready is not None
                    self._stream.wait_event(self._ready)
                    copies = [self._copied(shard) for shard in shards]
                    self._stream.synchronize()
            self._complete = True
            return copies
        finally:
            self._settled.set()

    def settle(self) -> None:
        """Wait until no copy reads the shards any more: before they change."""
        self._settled.wait()

    def _copied(self, shard: Shard) -> Shard:
        host = {part: self._buffer(shard.name, part, tensor) for part, tensor in shard.parts()}
        for part, tensor in shard.parts():
            host[part].copy_(tensor.detach(), non_blocking=True)
        moments = (host["exp_avg"], host["exp_avg_sq"])
        return replace(shard, master=host["master"], moments=moments, ema=host.get("ema"))

    def _buffer(self, name: str, part: str, tensor: Tensor) -> Tensor:
        key = name, part
        if key not in self._buffers:
            pinned = tensor.device.type == "cuda"
            self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return self._buffers[key]
