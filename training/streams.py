"""Streams of a stage: the samples of a mixture entry that train at one latent size, and their share. Torch-free."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.config import OrderConfig
from training.samples import SampleIds, Samples
from training.template import Column, apportion, column_tokens, interleave, period_packs, unit_cycle

Media = Literal["image", "video"]
_SIDE_BITS = 20  # of a latent height or width


@dataclass(frozen=True)
class Stream:
    """Samples of one mixture entry that train at the same latent size. `samples` are sorted ids."""

    entry: str
    kind: Media  # kind of the steps it serves
    t: int
    h: int
    w: int
    samples: SampleIds
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


def streams_of(samples: Samples, config: OrderConfig, kind: Media) -> list[list[Stream]]:
    """Streams of each mixture entry that has any sample of this kind, sorted by size."""
    sizes, trained = _trained_sizes(samples, config, kind)
    found = []
    for entry in config.mixture:
        own = [any(fnmatch.fnmatchcase(source, glob) for glob in entry.sources) for source in samples.sources]
        taken = np.flatnonzero(trained & np.array(own, dtype=np.bool_)[samples.source]).astype(np.int32)
        found_sizes = sizes[taken]
        streams = [
            _stream(entry.name, kind, int(size), SampleIds(samples.ids, taken[found_sizes == size]), config)
            for size in np.unique(found_sizes)
        ]
        if streams:
            found.append(streams)
    return found


def _trained_sizes(samples: Samples, config: OrderConfig, kind: Media) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(n,) latent size that each sample trains at, t, h and w in one word, and whether it does.

    An image stage takes images and first frames of videos, a video stage the prefix of longer videos, its image
    steps images only.
    """
    t, h, w = samples.sizes
    if config.is_image_stage or kind == "image":
        return _word(np.ones_like(t), h, w), samples.image | config.is_image_stage
    return _word(np.minimum(t, config.latents), h, w), samples.video & (t >= config.min_latents)


def _word(t: NDArray[np.int32], h: NDArray[np.int32], w: NDArray[np.int32]) -> NDArray[np.int64]:
    return t.astype(np.int64) << 2 * _SIDE_BITS | h.astype(np.int64) << _SIDE_BITS | w


def _stream(entry: str, kind: Media, size: int, samples: SampleIds, config: OrderConfig) -> Stream:
    t, h, w = (size >> k * _SIDE_BITS & (1 << _SIDE_BITS) - 1 for k in (2, 1, 0))
    cycle = unit_cycle(config.columns, t, h, w, config.high_units)
    mean = sum(column_tokens(c, h, w) for pack in cycle for c in pack) / t
    batch = max(1, round(config.tokens_per_pack / mean))
    return Stream(entry, kind, t, h, w, samples, batch, cycle)


def allocate(entries: list[list[Stream]], config: OrderConfig) -> tuple[tuple[Stream, ...], tuple[int, ...]]:
    """Streams with their pack positions in the period, and the period as stream numbers."""
    weight = {e.name: e.weight for e in config.mixture}
    weights = [weight[streams[0].entry] for streams in entries]
    total = period_packs(weights, [len(s) for s in entries], config.packs)
    counts: list[int] = []
    for share, streams in zip(weights, entries, strict=True):
        # Inside an entry every clip is seen about equally often: packs follow samples / samples per pack.
        counts += apportion(total * share // sum(weights), [Fraction(len(s.samples), s.slots) for s in streams])
    sequence = tuple(interleave(counts))
    places: list[list[int]] = [[] for _ in counts]
    for position, number in enumerate(sequence):
        places[number].append(position)
    flat = [stream for streams in entries for stream in streams]
    return tuple(replace(s, positions=tuple(p)) for s, p in zip(flat, places, strict=True)), sequence
