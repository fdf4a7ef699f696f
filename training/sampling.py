"""Timetable of a data order on a dataset version, without its samples: enough to say which steps saw one. Torch-free.

plan = SamplingPlan.of(groups, order, stage)
places = plan.places(group.key, rank_of, seed, stage, cursor)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from training.config import OrderConfig
from training.samples import SampleGroup
from training.streams import Media
from training.timetable import Place, Timetable, plan_streams

GroupKey = tuple[str, str, int, int, int]  # source, media, latent t, h, w
RankOf = Callable[[Sequence[GroupKey]], int]  # groups of a stream -> how many of their sample ids are smaller


@dataclass(frozen=True, slots=True)
class PlannedStream:
    """What the timetable needs of a stream; `groups` are places in the plan's groups."""

    name: str
    kind: Media
    groups: tuple[int, ...]
    count: int
    slots: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class SamplingPlan:
    """Streams and timetable of an order; seed and stage only enter when places are asked for. Clips that it holds out,
    `held_out` of a million, have places and are never trained on: see `training.split`."""

    timetable: Timetable
    groups: tuple[GroupKey, ...]
    streams: tuple[PlannedStream, ...]
    held_out: int = 0

    @classmethod
    def of(cls, groups: Sequence[SampleGroup], config: OrderConfig, stage: str) -> SamplingPlan:
        """From the sizes of the dataset's sample groups, in any order; raises ConfigError when none trains."""
        ordered = sorted(groups)
        plan = plan_streams(ordered, config, stage)
        streams = tuple(
            PlannedStream(s.name, s.kind, s.groups, s.count, s.slots, s.positions)
            for of_kind in plan.streams.values()
            for s in of_kind
        )
        return cls(plan.timetable, tuple(g.key for g in ordered), streams, config.held_out)

    def streams_with(self, group: GroupKey) -> Sequence[PlannedStream]:
        """Streams that draw samples of a group: one for each mixture entry and kind of step that takes it."""
        return self._streams_with.get(group, ())

    @cached_property
    def _streams_with(self) -> dict[GroupKey, list[PlannedStream]]:
        found: dict[GroupKey, list[PlannedStream]] = {}
        for stream in self.streams:
            for group in stream.groups:
                found.setdefault(self.groups[group], []).append(stream)
        return found

    def keys(self, stream: PlannedStream) -> tuple[GroupKey, ...]:
        return tuple(map(self.groups.__getitem__, stream.groups))

    def places(self, group: GroupKey, rank_of: RankOf, seed: int, stage: str, cursor: int) -> list[Place]:
        """Every use of a sample of `group` in steps before `cursor`, in order of steps."""
        found: list[Place] = []
        for stream in self.streams_with(group):
            found += self.timetable.places(stream, rank_of(self.keys(stream)), cursor, seed, stage)
        return sorted(found)

    def draws(self, cursor: int) -> Iterator[tuple[PlannedStream, int]]:
        """Streams with the draws that steps before `cursor` took of them."""
        return ((s, self.timetable.draws_before(s, cursor)) for s in self.streams)

    def distinct(self, cursor: int) -> int:
        """Different samples that steps before `cursor` consumed, counted once a stream."""
        return sum(min(drawn, s.count) for s, drawn in self.draws(cursor))

    def to_json(self) -> dict[str, Any]:
        table = self.timetable
        return {
            "packs": table.packs,
            "pattern": list(table.pattern),
            "period": dict(table.period),
            "groups": [list(g) for g in self.groups],
            "streams": [
                [s.name, s.kind, list(s.groups), s.count, s.slots, list(s.positions)] for s in self.streams
            ],
            **({"held_out": self.held_out} if self.held_out else {}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SamplingPlan:
        streams = tuple(
            PlannedStream(name, kind, tuple(members), count, slots, tuple(positions))
            for name, kind, members, count, slots, positions in data["streams"]
        )
        timetable = Timetable(data["packs"], tuple(data["pattern"]), data["period"])
        return cls(timetable, tuple(map(tuple, data["groups"])), streams, data.get("held_out", 0))
