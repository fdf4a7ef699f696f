"""Which draws the steps of a stage take: integers alone, the same for every seed. Torch-free.

`Timetable` turns draws of a stream into steps and back; `plan_streams` makes it from the sizes of sample groups,
so that neither needs the samples themselves.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from m4v.core.errors import ConfigError
from m4v.core.rng import Permutation
from training.config import MixtureEntry, OrderConfig
from training.samples import SampleGroup
from training.streams import Media, Stream, allocate, streams_of


class Place(NamedTuple):
    """Where a draw is consumed."""

    step: int
    pack: int
    slot: int


class Drawn(Protocol):
    """What the arithmetic needs of a stream: `count` samples, `slots` of them a pack, packs at `positions`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Media: ...
    @property
    def count(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def positions(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Timetable:
    """`packs` of a step, the `pattern` of step kinds, and the packs in the `period` of each kind."""

    packs: int
    pattern: tuple[Media, ...]
    period: Mapping[Media, int]

    def draws_before(self, stream: Drawn, step: int) -> int:
        """Draws of a stream in steps before `step`."""
        cycle, place = divmod(self.steps_of_kind(step, stream.kind) * self.packs, self.period[stream.kind])
        return (cycle * len(stream.positions) + bisect.bisect_left(stream.positions, place)) * stream.slots

    def place(self, stream: Drawn, draw: int) -> Place:
        """Where draw number `draw` of a stream is consumed."""
        number, slot = divmod(draw, stream.slots)
        cycle, local = divmod(number, len(stream.positions))
        packs = cycle * self.period[stream.kind] + stream.positions[local]
        step, pack = divmod(packs, self.packs)
        return Place(self._step_from_kind(step, stream.kind), pack, slot)

    def places(self, stream: Drawn, rank: int, cursor: int, seed: int, stage: str) -> Iterator[Place]:
        """Every use, in steps before `cursor`, of the sample with `rank` smaller ids in its stream. O(epochs)."""
        drawn = self.draws_before(stream, cursor)
        for epoch in range(-(-drawn // stream.count)):
            draw = draw_of(stream, rank, seed, stage, epoch)
            if draw < drawn:
                yield self.place(stream, draw)

    def uses_among(self, stream: Drawn, drawn: int, draw_in: Callable[[int], int]) -> int:
        """How often the first `drawn` draws of a stream took a sample, from one of its draws at most: `draw_in` tells
        that of an epoch. Every epoch draws it once, so that those before the last are counted unseen."""
        epochs, rest = divmod(drawn, stream.count)
        return epochs + (rest > 0 and draw_in(epochs) < drawn)

    def steps_of_kind(self, step: int, kind: Media) -> int:
        """Number of steps of `kind` before `step`."""
        cycle, rest = divmod(step, len(self.pattern))
        return cycle * self.pattern.count(kind) + self.pattern[:rest].count(kind)

    def _step_from_kind(self, number: int, kind: Media) -> int:
        cycle, rest = divmod(number, self.pattern.count(kind))
        return cycle * len(self.pattern) + [i for i, k in enumerate(self.pattern) if k == kind][rest]


class StreamPlan(NamedTuple):
    """Streams by kind of step with their places in the period, which `sequence` holds as stream numbers."""

    timetable: Timetable
    streams: dict[Media, tuple[Stream, ...]]
    sequence: dict[Media, tuple[int, ...]]


def draw_of(stream: Drawn, rank: int, seed: int, stage: str, epoch: int) -> int:
    """Which draw of the stream takes the sample with `rank` smaller ids in an epoch."""
    return epoch * stream.count + permutation_of(stream, seed, stage, epoch).inverse(rank)


def permutation_of(stream: Drawn, seed: int, stage: str, epoch: int) -> Permutation:
    """Place in an epoch -> rank of the sample among the ids of its stream."""
    return Permutation(stream.count, seed, "order", stage, stream.name, epoch)


def plan_streams(groups: Sequence[SampleGroup], config: OrderConfig, stage: str) -> StreamPlan:
    """Streams and timetable of a stage; raises ConfigError when no group has anything for it."""
    kinds: list[Media] = ["image"] if config.is_image_stage else ["video", "image"]
    candidates = {kind: streams_of(groups, config, kind) for kind in kinds}
    main: Media = kinds[0]
    if not candidates[main]:
        raise ConfigError(
            f"dataset has no sample for stage {stage!r}",
            value=f"{config.frames} frames, at least {config.min_frames}, sources {_globs(config.mixture)}",
            next_step="lower order.min_frames, or curate longer clips",
        )
    mixes = main == "video" and config.image_every > 0 and bool(candidates.get("image"))
    videos: list[Media] = ["video"] * config.image_every
    pattern: tuple[Media, ...] = (*videos, "image") if mixes else (main,)
    streams: dict[Media, tuple[Stream, ...]] = {}
    sequence: dict[Media, tuple[int, ...]] = {}
    for kind in dict.fromkeys(pattern):
        streams[kind], sequence[kind] = allocate(candidates[kind], config)
    timetable = Timetable(config.packs, pattern, {kind: len(packs) for kind, packs in sequence.items()})
    return StreamPlan(timetable, streams, sequence)


def _globs(mixture: Sequence[MixtureEntry]) -> list[str]:
    return [glob for entry in mixture for glob in entry.sources]
