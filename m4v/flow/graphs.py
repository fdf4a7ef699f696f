"""Forwards of a sampler as CUDA graphs: where a forward is over sooner than Python can launch its kernels.

The steps of one stage of one frame differ in the values of their tensors alone. The first of them runs as it is: it
makes the tables of its layout and lets kernels be compiled. The second is recorded, and it and all later ones are one
launch. A graph computes what the forward computes, to the bit.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from m4v.flow.loss import VelocityModel
from m4v.kernels.selection import attention_choice, glue_choice, scan_choice
from m4v.model.layout import forget_layouts, layouts_age

_log = logging.getLogger(__name__)

# Packed tokens of all rows of a forward. From about here on the GPU takes longer than the launches (2.2 B, H200).
MOST_TOKENS = 16_384
KEPT = 4  # shapes; self-quality guidance alternates between two

Run = Callable[[], list[Tensor]]
Key = tuple[object, ...]


class Recorded(NamedTuple):
    """A recorded forward: `replay` fills `results` anew from the tensors that it was recorded with."""

    results: list[Tensor]
    replay: Callable[[], None]


class CudaCapture:
    """Records on a stream of its own. All graphs lie in one pool: none runs while another does, and what they return
    is copied out at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._anchor: Recorded | None = None
        self._pool: object = None

    def __call__(self, run: Run) -> Recorded:
        if self._anchor is None:
            self._stream, self._pool = torch.cuda.Stream(self._device), torch.cuda.graph_pool_handle()
            # A pool ends with its last graph and cannot be had again: this one is never replayed and stays.
            nothing = torch.zeros(1, device=self._device)
            self._anchor = self._record(lambda: [nothing + 1])
        return self._record(run)

    def _record(self, run: Run) -> Recorded:
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        assert self._stream is not None
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            # Not `torch.cuda.graph`, which waits for the device, collects garbage and empties the cache every time.
            # Other threads, one that decodes for example, may allocate memory meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # type: ignore[arg-type]
            try:
                results = run()
            finally:
                graph.capture_end()
        now.wait_stream(self._stream)
        return Recorded(results, graph.replay)


class _Graph(NamedTuple):
    inputs: list[Tensor]
    recorded: Recorded


class GraphedModel:
    """A `VelocityModel` that records and replays the forwards of `model` that are small enough.

    Graphs read the tables of their layouts where they lie, so they end with these (`forget_layouts`). `captured`,
    `replayed` and `plain` count forwards; `refused` says why nothing is recorded any more after a failure.
    """

    def __init__(
        self, model: VelocityModel, capture: Callable[[Run], Recorded], most_tokens: int = MOST_TOKENS
    ) -> None:
        self.model, self._capture, self._most_tokens = model, capture, most_tokens
        self._graphs: OrderedDict[Key, _Graph | None] = OrderedDict()  # None: seen once
        self._age = layouts_age()
        self.captured = self.replayed = self.plain = 0
        self.refused: str | None = None

    def __call__(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int],
    ) -> list[Tensor]:
        inputs = [*(clip for column in columns for clip in column), timesteps, text, text_mask, pooled]
        if layouts_age() != self._age:
            self._age = layouts_age()
            self._graphs.clear()
        if self.refused is None and not torch.is_grad_enabled() and _tokens(columns, text) <= self._most_tokens:
            counts = [len(column) for column in columns]
            key: Key = (*((tuple(u.shape), u.dtype) for u in inputs), *counts, *stages, *_kernels(inputs[0].device))
            graph = self._graph_of(key, inputs, counts, stages)
            if graph is not None:
                return self._replay(graph, inputs)
        self.plain += 1
        return self.model(columns, timesteps, text, text_mask, pooled, stages)

    def _graph_of(self, key: Key, inputs: list[Tensor], counts: list[int], stages: Sequence[int]) -> _Graph | None:
        """The shape's graph, which is recorded when the shape comes for the second time; None before and after a
        failure."""
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
            return None
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._record(inputs, counts, stages)
        return graph

    def _record(self, inputs: list[Tensor], counts: list[int], stages: Sequence[int]) -> _Graph | None:
        held = [u.clone() for u in inputs]
        clips, columns = iter(held), []
        for count in counts:
            columns.append([next(clips) for _ in range(count)])
        timesteps, text, mask, pooled = clips
        try:
            recorded = self._capture(lambda: self.model(columns, timesteps, text, mask, pooled, stages))
        except RuntimeError as error:  # an operation that cannot be recorded, or too little memory for the pool
            self.refused = str(error).partition("\n")[0]
            self._graphs.clear()
            forget_layouts()  # what was made while recording was never filled
            _log.warning("forwards are launched one kernel at a time, since recording one failed: %s", self.refused)
            return None
        self.captured += 1
        return _Graph(held, recorded)

    def _replay(self, graph: _Graph, inputs: list[Tensor]) -> list[Tensor]:
        for held, given in zip(graph.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        graph.recorded.replay()
        self.replayed += 1
        return [result.clone() for result in graph.recorded.results]


def _kernels(device: torch.device) -> Key:
    """What decides, beside the shapes, which kernels a forward launches."""
    cast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if cast else None
    return scan_choice(), attention_choice(), glue_choice(), dtype


def _tokens(columns: Sequence[Sequence[Tensor]], text: Tensor) -> int:
    """Packed tokens of all rows, registers aside."""
    image = sum(clip.shape[0] * clip[0, 0].numel() // 4 for column in columns for clip in column)
    return image + text.shape[0] * text.shape[1]
