"""Closed-form data order: (step, pack, slot) -> (stream, draw) -> sample, and its inverse. Torch-free.

Draw j of a stream with n samples is a keyed permutation of j mod n, keyed by (seed, stage, stream, j div n).
The cyclic template says which packs a step has. So which step saw a sample costs O(epochs), no replay, and
neither rank count nor workers enter (DESIGN, Data order and randomness).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from m4v.core.errors import ConfigError
from m4v.core.rng import Permutation
from training.config import MixtureEntry, OrderConfig
from training.samples import SampleCounts, SampleRow, Samples
from training.streams import Media, Stream, allocate, streams_of
from training.template import HIGH, Column


class Draw(NamedTuple):
    """One use of a sample: `number` counts the draws of its stream and keys all its randomness."""

    sample_id: str
    number: int


class Place(NamedTuple):
    """Where a draw is consumed."""

    step: int
    pack: int
    slot: int


class StepSize(NamedTuple):
    """Constants of a step over all ranks. `high` counts the samples of high-stage columns."""

    samples: int
    tokens: int
    high: int


@dataclass(frozen=True)
class Pack:
    """One forward pass, pack `place` of its step. Slot i * len(columns) + c is sample i of column c."""

    place: int
    stream: Stream
    columns: tuple[Column, ...]
    draws: tuple[Draw, ...]

    @property
    def samples(self) -> list[str]:
        return [draw.sample_id for draw in self.draws]


class DataOrder:
    """The plan of one stage. Raises ConfigError when the dataset has nothing for it."""

    def __init__(self, rows: Samples | Sequence[SampleRow], config: OrderConfig, seed: int, stage: str) -> None:
        self.config, self.seed, self.stage = config, seed, stage
        samples = rows if isinstance(rows, Samples) else Samples.of_rows(rows)
        self._ids = samples.ids
        kinds: list[Media] = ["image"] if config.is_image_stage else ["video", "image"]
        candidates = {kind: streams_of(samples, config, kind) for kind in kinds}
        main: Media = kinds[0]
        if not candidates[main]:
            raise ConfigError(
                f"dataset has no sample for stage {stage!r}",
                value=f"{config.frames} frames, at least {config.min_frames}, sources {_globs(config.mixture)}",
                next_step="lower order.min_frames, or curate longer clips",
            )
        self.main_kind = main
        mixes = main == "video" and config.image_every > 0 and bool(candidates.get("image"))
        videos: list[Media] = ["video"] * config.image_every
        self._pattern: list[Media] = [*videos, "image"] if mixes else [main]
        self._period: dict[Media, tuple[Stream, ...]] = {}
        self._sequence: dict[Media, tuple[int, ...]] = {}
        for kind in dict.fromkeys(self._pattern):
            streams, sequence = allocate(candidates[kind], config)
            self._period[kind], self._sequence[kind] = streams, sequence

    @property
    def round(self) -> range:
        """Steps of the first image:video round."""
        return range(len(self._pattern))

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(s for streams in self._period.values() for s in streams)

    def media(self, step: int) -> Media:
        """Kind of a step: all its packs are images or all are videos, on every rank."""
        return self._pattern[step % len(self._pattern)]

    def pack(self, step: int, pack: int) -> Pack:
        stream, number = self._locate(step, pack)
        first = number * stream.slots
        draws = tuple(Draw(self.sample_at(stream, j), j) for j in range(first, first + stream.slots))
        return Pack(pack, stream, stream.cycle[number % len(stream.cycle)], draws)

    def packs(self, step: int) -> tuple[Pack, ...]:
        return tuple(self.pack(step, p) for p in range(self.config.packs))

    def rank_packs(self, step: int, rank: int, world_size: int) -> tuple[Pack, ...]:
        """Packs rank, rank + W, …; raises ConfigError unless W divides the pack count."""
        check_world_size(self.config, world_size)
        return tuple(self.pack(step, p) for p in range(rank, self.config.packs, world_size))

    def step_size(self, step: int) -> StepSize:
        """Samples and tokens of a step over all ranks; they weigh its loss."""
        located = [self._locate(step, p) for p in range(self.config.packs)]
        high = self.config.columns.count(HIGH)
        return StepSize(
            samples=sum(s.slots for s, _ in located),
            tokens=sum(s.pack_tokens(n) for s, n in located),
            high=sum(s.batch * high for s, _ in located),
        )

    def sample_at(self, stream: Stream, draw: int) -> str:
        epoch, place = divmod(draw, len(stream.samples))
        return stream.samples[self._permutation(stream.name, len(stream.samples), epoch)(place)]

    def places_of(self, sample_id: str, cursor: int) -> list[Place]:
        """Every use of a sample in steps before `cursor`, in order of steps. O(epochs)."""
        places = [p for stream in self.streams for p in self._places_in(stream, sample_id, cursor)]
        return sorted(places)

    def counts(self, cursor: int) -> SampleCounts:
        """How often each sample was used in steps before `cursor`; unused samples are left out."""
        counts = np.zeros(len(self._ids), dtype=np.int64)
        for stream in self.streams:
            n = len(stream.samples)
            epochs, rest = divmod(self.draws_before(stream, cursor), n)
            permutation = self._permutation(stream.name, n, epochs)
            # The shorter side of an epoch that is under way: what was drawn, or what was not.
            drawn = rest <= n - rest
            listed = range(rest) if drawn else range(rest, n)
            used = np.full(n, not drawn)
            used[np.fromiter(map(permutation, listed), dtype=np.int64, count=len(listed))] = drawn
            counts[stream.samples.places] += epochs + used
        return SampleCounts(self._ids, counts)

    def draws_before(self, stream: Stream, step: int) -> int:
        """Draws of a stream in steps before `step`."""
        kind = stream.kind
        cycle, place = divmod(self._step_of_kind(step, kind) * self.config.packs, len(self._sequence[kind]))
        return (cycle * len(stream.positions) + bisect.bisect_left(stream.positions, place)) * stream.slots

    def summary(self) -> dict[str, object]:
        """Streams with their exact shares, for people."""
        totals = {kind: len(sequence) for kind, sequence in self._sequence.items()}
        return {
            "period_packs": dict(totals),
            "streams": [
                {
                    "name": s.name, "media": s.kind, "latent": [s.t, s.h, s.w], "samples": len(s.samples),
                    "batch": s.batch, "packs": len(s.positions), "of": totals[s.kind],
                }
                for s in self.streams
            ],
        }  # fmt: skip

    def _locate(self, step: int, pack: int) -> tuple[Stream, int]:
        """Stream of a pack and the number of the pack in it."""
        if not 0 <= pack < self.config.packs or step < 0:
            raise IndexError(f"no pack {pack} in step {step}")
        kind = self.media(step)
        sequence = self._sequence[kind]
        cycle, place = divmod(self._step_of_kind(step, kind) * self.config.packs + pack, len(sequence))
        stream = self._period[kind][sequence[place]]
        return stream, cycle * len(stream.positions) + bisect.bisect_left(stream.positions, place)

    def _places_in(self, stream: Stream, sample_id: str, cursor: int) -> Iterator[Place]:
        at = stream.samples.find(sample_id)
        if at is None:
            return
        drawn, n = self.draws_before(stream, cursor), len(stream.samples)
        for epoch in range(-(-drawn // n)):
            draw = epoch * n + self._permutation(stream.name, n, epoch).inverse(at)
            if draw < drawn:
                yield self._place(stream, draw)

    def _place(self, stream: Stream, draw: int) -> Place:
        number, slot = divmod(draw, stream.slots)
        cycle, local = divmod(number, len(stream.positions))
        packs = cycle * len(self._sequence[stream.kind]) + stream.positions[local]
        step, pack = divmod(packs, self.config.packs)
        return Place(self._step_from_kind(step, stream.kind), pack, slot)

    def _step_of_kind(self, step: int, kind: Media) -> int:
        """Number of steps of `kind` before `step`."""
        cycle, rest = divmod(step, len(self._pattern))
        return cycle * self._pattern.count(kind) + self._pattern[:rest].count(kind)

    def _step_from_kind(self, number: int, kind: Media) -> int:
        cycle, rest = divmod(number, self._pattern.count(kind))
        return cycle * len(self._pattern) + [i for i, k in enumerate(self._pattern) if k == kind][rest]

    @lru_cache(maxsize=1024)  # noqa: B019 - one order per process; the cache saves re-keying every draw
    def _permutation(self, stream: str, n: int, epoch: int) -> Permutation:
        return Permutation(n, self.seed, "order", self.stage, stream, epoch)


def check_world_size(config: OrderConfig, world_size: int) -> None:
    if config.packs % world_size:
        raise ConfigError(
            f"{world_size} ranks do not divide the packs of a step",
            value=config.packs,
            where="order.packs",
            next_step=f"set order.packs to a multiple of {world_size}",
        )


def _globs(mixture: Sequence[MixtureEntry]) -> list[str]:
    return [glob for entry in mixture for glob in entry.sources]
