"""Closed-form data order: (step, pack, slot) -> (stream, draw) -> sample, and its inverse. Torch-free.

Draw j of a stream with n samples is a keyed permutation of j mod n, keyed by (seed, stage, stream, j div n).
The cyclic template says which packs a step has. So which step saw a sample costs O(epochs), no replay, and
neither rank count nor workers enter (DESIGN, Data order and randomness).
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m4v.core.errors import ConfigError
from m4v.core.rng import Permutation
from training.config import OrderConfig
from training.samples import SampleCounts, SampleRow, Samples
from training.streams import Media, SampleStream, Stream
from training.template import HIGH, Column
from training.timetable import Place as Place
from training.timetable import permutation_of, plan_streams


class Draw(NamedTuple):
    """One use of a sample: `number` counts the draws of its stream and keys all its randomness."""

    sample_id: str
    number: int


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
        groups, group = samples.groups()
        self.timetable, streams, self._sequence = plan_streams(groups, config, stage)
        self._period: dict[Media, tuple[SampleStream, ...]] = {
            kind: tuple(SampleStream(**vars(s), samples=samples.members(group, s.groups)) for s in of_kind)
            for kind, of_kind in streams.items()
        }

    @property
    def main_kind(self) -> Media:
        return self.timetable.pattern[0]

    @property
    def round(self) -> range:
        """Steps of the first image:video round."""
        return range(len(self.timetable.pattern))

    @property
    def streams(self) -> tuple[SampleStream, ...]:
        return tuple(s for streams in self._period.values() for s in streams)

    def media(self, step: int) -> Media:
        """Kind of a step: all its packs are images or all are videos, on every rank."""
        return self.timetable.pattern[step % len(self.timetable.pattern)]

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

    def shapes(self, step: int) -> list[tuple[Stream, tuple[Column, ...]]]:
        """Stream and columns of every pack of a step, without its samples."""
        located = (self._locate(step, p) for p in range(self.config.packs))
        return [(stream, stream.cycle[number % len(stream.cycle)]) for stream, number in located]

    def sample_at(self, stream: SampleStream, draw: int) -> str:
        epoch, place = divmod(draw, stream.count)
        return stream.samples[self._permutation(stream, epoch)(place)]

    def places_of(self, sample_id: str, cursor: int) -> list[Place]:
        """Every use of a sample in steps before `cursor`, in order of steps. O(epochs)."""
        places: list[Place] = []
        for stream in self.streams:
            rank = stream.samples.find(sample_id)
            if rank is not None:
                places += self.timetable.places(stream, rank, cursor, self.seed, self.stage)
        return sorted(places)

    def counts(self, cursor: int, skipped: Collection[int] = (), held_out: Collection[str] = ()) -> SampleCounts:
        """How often each sample was used in steps before `cursor`, those in `skipped` and samples `held_out` not
        counted; unused samples are left out."""
        counts = np.zeros(len(self._ids), dtype=np.int64)
        for stream in self.streams:
            n = stream.count
            epochs, rest = divmod(self.timetable.draws_before(stream, cursor), n)
            permutation = self._permutation(stream, epochs)
            # The shorter side of an epoch that is under way: what was drawn, or what was not.
            drawn = rest <= n - rest
            listed = range(rest) if drawn else range(rest, n)
            used = np.full(n, not drawn)
            used[np.fromiter(map(permutation, listed), dtype=np.int64, count=len(listed))] = drawn
            counts[stream.samples.places] += epochs + used
        for step in sorted({step for step in skipped if step < cursor}):
            for pack in self.packs(step):
                np.subtract.at(counts, self._rows_of(pack.samples), 1)
        counts[self._rows_of(held_out)] = 0
        return SampleCounts(self._ids, counts)

    def _rows_of(self, sample_ids: Collection[str]) -> NDArray[np.int64]:
        return np.array([np.searchsorted(self._ids, i.encode()) for i in sample_ids], dtype=np.int64)

    def summary(self) -> dict[str, object]:
        """Streams with their exact shares, for people."""
        totals = {kind: len(sequence) for kind, sequence in self._sequence.items()}
        return {
            "period_packs": dict(totals),
            "streams": [
                {
                    "name": s.name, "media": s.kind, "latent": [s.t, s.h, s.w], "samples": s.count,
                    "batch": s.batch, "packs": len(s.positions), "of": totals[s.kind],
                }
                for s in self.streams
            ],
        }  # fmt: skip

    def _locate(self, step: int, pack: int) -> tuple[SampleStream, int]:
        """Stream of a pack and the number of the pack in it."""
        if not 0 <= pack < self.config.packs or step < 0:
            raise IndexError(f"no pack {pack} in step {step}")
        kind = self.media(step)
        sequence = self._sequence[kind]
        cycle, place = divmod(self.timetable.steps_of_kind(step, kind) * self.config.packs + pack, len(sequence))
        stream = self._period[kind][sequence[place]]
        return stream, cycle * len(stream.positions) + bisect.bisect_left(stream.positions, place)

    @lru_cache(maxsize=1024)  # noqa: B019 - one order per process; the cache saves re-keying every draw
    def _permutation(self, stream: Stream, epoch: int) -> Permutation:
        return permutation_of(stream, self.seed, self.stage, epoch)


def check_world_size(config: OrderConfig, world_size: int) -> None:
    if config.packs % world_size:
        raise ConfigError(
            f"{world_size} ranks do not divide the packs of a step",
            value=config.packs,
            where="order.packs",
            next_step=f"set order.packs to a multiple of {world_size}",
        )
