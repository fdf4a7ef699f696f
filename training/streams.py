"""Streams of a stage: the samples of a mixture entry that train at one latent size, and their share. Torch-free."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from training.config import OrderConfig
from training.samples import SampleGroup, SampleIds
from training.template import Column, apportion, column_tokens, interleave, period_packs, unit_cycle

Media = Literal["image", "video"]


class Size(NamedTuple):
    """Latent frames, height and width."""

    t: int
    h: int
    w: int


@dataclass(frozen=True)
class Stream:
    """Samples of one mixture entry that train at the same latent size: all of some groups, `count` together."""

    entry: str
    kind: Media  # kind of the steps it serves
    t: int
    h: int
    w: int
    groups: tuple[int, ...]
    count: int
    batch: int  # samples per column
    cycle: tuple[tuple[Column, ...], ...]  # unit cycle of its packs
    positions: tuple[int, ...] = ()  # of its packs in the period of their kind

    @property
    def name(self) -> str:
        return f"{self.entry}/{self.kind}/{self.t}x{self.h}x{self.w}"

    @property
    def slots(self) -> int:
        """Samples of one pack."""
        return self.batch * len(self.cycle[0])

    def pack_tokens(self, number: int) -> int:
        """Visual tokens of the stream's pack `number`."""
        return self.batch * sum(column_tokens(c, self.h, self.w) for c in self.cycle[number % len(self.cycle)])


@dataclass(frozen=True, kw_only=True)
class SampleStream(Stream):
    """A stream with its samples, in order of their ids."""

    samples: SampleIds


def streams_of(groups: Sequence[SampleGroup], config: OrderConfig, kind: Media) -> list[list[Stream]]:
    """Streams of each mixture entry that has any sample of this kind, sorted by size. `Stream.groups` holds places
    in `groups`."""
    found = []
    for entry in config.mixture:
        sizes: dict[Size, list[int]] = {}
        for number, group in enumerate(groups):
            size = _trained_size(group, config, kind)
            if size is not None and any(fnmatch.fnmatchcase(group.source, glob) for glob in entry.sources):
                sizes.setdefault(size, []).append(number)
        if sizes:
            found.append([_stream(entry.name, kind, size, sizes[size], groups, config) for size in sorted(sizes)])
    return found


def _trained_size(group: SampleGroup, config: OrderConfig, kind: Media) -> Size | None:
    """Latent size that samples of a group train at; None when they do not.

    An image stage takes images and first frames of videos, a video stage the prefix of longer videos, its image
    steps images only.
    """
    if config.is_image_stage:
        return Size(1, group.h, group.w)
    if kind == "image":
        return Size(1, group.h, group.w) if group.media == "image" else None
    trains = group.media == "video" and group.t >= config.min_latents
    return Size(min(group.t, config.latents), group.h, group.w) if trains else None


def _stream(
    entry: str, kind: Media, size: Size, members: list[int], groups: Sequence[SampleGroup], config: OrderConfig
) -> Stream:
    cycle, tokens = _unit_cycle(config.columns, size, config.high_units)
    batch = max(1, round(config.tokens_per_pack / (tokens / len(cycle))))
    count = sum(groups[number].samples for number in members)
    return Stream(entry, kind, *size, tuple(members), count, batch, cycle)


@lru_cache(maxsize=4096)
def _unit_cycle(columns: tuple[int, ...], size: Size, high_units: int) -> tuple[tuple[tuple[Column, ...], ...], int]:
    """The unit cycle of a size with its tokens. Every dataset version has the same few sizes."""
    cycle = unit_cycle(columns, *size, high_units)
    return cycle, sum(column_tokens(c, size.h, size.w) for pack in cycle for c in pack)


def allocate(entries: list[list[Stream]], config: OrderConfig) -> tuple[tuple[Stream, ...], tuple[int, ...]]:
    """Streams with their pack positions in the period, and the period as stream numbers."""
    weight = {e.name: e.weight for e in config.mixture}
    weights = [weight[streams[0].entry] for streams in entries]
    total = period_packs(weights, [len(s) for s in entries], config.packs)
    counts: list[int] = []
    for share, streams in zip(weights, entries, strict=True):
        # Inside an entry every clip is seen about equally often: packs follow samples / samples per pack.
        counts += apportion(total * share // sum(weights), [Fraction(s.count, s.slots) for s in streams])
    sequence = tuple(interleave(counts))
    places: list[list[int]] = [[] for _ in counts]
    for position, number in enumerate(sequence):
        places[number].append(position)
    flat = [stream for streams in entries for stream in streams]
    return tuple(replace(s, positions=tuple(p)) for s, p in zip(flat, places, strict=True)), sequence
