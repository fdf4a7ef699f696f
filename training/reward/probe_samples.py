"""Clips and captions that a reward stage's probe uses: the same for every run on a dataset version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from training.config import OrderConfig
from training.loader import SampleStore, Text
from training.order import Draw, Pack
from training.samples import COLUMNS, Samples
from training.split import held_out_rows
from training.streams import Media, Size, Stream, streams_of
from training.template import HIGH, WHOLE, Column

_LOOKED_AT = 8  # samples for each prompt that is wanted: many have the same caption


class Prompt(NamedTuple):
    """A sample's first caption and the latent size of its videos."""

    caption: str
    text: Text
    size: Size


def probe_packs(index: pa.Table, order: OrderConfig, count: int) -> list[Pack]:
    """One pack for each of at most `count` samples: all columns of the order, units going round with the samples."""
    found: list[Pack] = []
    for number, (stream, sample) in enumerate(islice(_samples(index, order), count)):
        columns = stream.cycle[number % len(stream.cycle)]
        draws = tuple(Draw(sample, c) for c in range(len(columns)))
        found.append(Pack(number, replace(stream, batch=1), columns, draws))
    return found


def scored_packs(index: pa.Table, order: OrderConfig, last_latents: int, count: int, draws: int) -> list[Pack]:
    """One pack for each of at most `count` held-out samples: `draws` draws of a column that a reward looks at, the
    latents going round with the samples. None of a sample in which it looks at nothing."""
    found: list[Pack] = []
    for stream, sample in _held_out(index, order):
        looked_at = sorted({c for pack in stream.cycle for c in pack if _is_scored(c, stream.t, last_latents)})
        if looked_at and len(found) < count:
            column = looked_at[len(found) % len(looked_at)]
            drawn = tuple(Draw(sample, number) for number in range(draws))
            found.append(Pack(len(found), replace(stream, batch=draws), (column,), drawn))
    return found


def _is_scored(column: Column, latents: int, last: int) -> bool:
    return column.stage == WHOLE or (column.stage == HIGH and column.unit > latents - last)


def probe_prompts(index: pa.Table, order: OrderConfig, store: SampleStore, count: int, latents: int) -> list[Prompt]:
    """At most `count` different captions, with videos of at most `latents` latent frames."""
    found: dict[str, Prompt] = {}
    for stream, sample in islice(_samples(index, order), _LOOKED_AT * count):
        caption = store.caption(sample, 0)
        if caption not in found and len(found) < count:
            size = Size(min(latents, stream.t), stream.h, stream.w)
            found[caption] = Prompt(caption, store.text(sample, 0), size)
    return list(found.values())


def _held_out(index: pa.Table, order: OrderConfig) -> Iterator[tuple[Stream, str]]:
    """Samples of held-out clips with their stream, streams in turn."""
    return _in_turn([held_out_rows(index, order.held_out)] if order.held_out else [], order)


def _samples(index: pa.Table, order: OrderConfig) -> Iterator[tuple[Stream, str]]:
    """Samples of the stage's kind with their stream, streams in turn: of clips that are held out, then of all."""
    tables = [held_out_rows(index, order.held_out)] if order.held_out else []
    return _in_turn([*tables, index.select(list(COLUMNS))], order)


def _in_turn(tables: Sequence[pa.Table], order: OrderConfig) -> Iterator[tuple[Stream, str]]:
    kind: Media = "image" if order.is_image_stage else "video"
    seen: set[str] = set()
    for table in tables:
        samples = Samples.of_index(table)
        groups, group = samples.groups()
        streams = [s for of_entry in streams_of(groups, order, kind) for s in of_entry]
        members = [samples.members(group, s.groups) for s in streams]
        for place in range(max(map(len, members), default=0)):
            for stream, ids in zip(streams, members, strict=True):
                if place < len(ids) and ids[place] not in seen:
                    seen.add(ids[place])
                    yield stream, ids[place]
