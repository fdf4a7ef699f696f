"""Annotations of which several may name one file or the same frames of it, brought together span by span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from dataprep.sources.config_base import Tables
from dataprep.sources.entries import CROP
from dataprep.sources.keys import SpanGroups, SpanRow
from dataprep.sources.listing import Count, Entry, Media, Rejected
from dataprep.sources.rows import MediaFiles, Place, Row, row_entries


class Annotation(NamedTuple):
    """A row of an annotation file: captions and claims of frames first..last (inclusive, None = all)."""

    path: str
    media: Media
    first: int | None
    last: int | None
    texts: Sequence[str]
    claims: Mapping[str, float]
    extra: Mapping[str, object]
    place: Place


def grouped(
    rows: Iterable[Annotation | Entry], groups: SpanGroups, config: Tables, files: MediaFiles
) -> Iterator[Entry]:
    """Entries that are no annotation at once, then one listed file a span: captions of all its rows, claims of the
    first. Rows of a span that add no caption are counted as `repeated_rows`; one that crops the span otherwise than
    its first row is rejected: a clip has one picture."""
    for row in rows:
        if isinstance(row, Annotation):
            facts: dict[str, object] = {
                "media": row.media,
                "texts": list(row.texts),
                "claims": row.claims,
                "extra": row.extra,
                "place": list(row.place),
            }
            groups.add(SpanRow(row.path, row.first, row.last, facts))
        else:
            yield row
    for group in groups.spans():
        yield from _span(group, config, files)


def _span(group: list[SpanRow], config: Tables, files: MediaFiles) -> Iterator[Entry]:
    head = group[0]
    texts: list[str] = []
    for number, row in enumerate(group):
        if _crop_of(row) != _crop_of(head):
            where = Place(*cast(tuple[str, int, int | None], row.facts["place"]))
            detail = f"{where}: crops to {_crop_of(row)}, the first row of these frames to {_crop_of(head)}"
            yield Rejected(row.path, where.row, "conflicting_crop", detail)
            continue
        new = [t for t in cast(list[str], row.facts["texts"]) if t not in texts]
        if number and not new:
            yield Count("repeated_rows")
        texts += new
    facts = head.facts
    table, number, offset = cast(tuple[str, int, int | None], facts["place"])
    yield from row_entries(
        Row(
            head.path, head.path, cast(Media, facts["media"]), texts, head.first, head.last,
            claims=cast(dict[str, float], facts["claims"]), extra=cast(dict[str, object], facts["extra"]),
        ),
        Place(table, number, offset), config, files,
    )  # fmt: skip


def _crop_of(row: SpanRow) -> object:
    return cast(dict[str, object], row.facts["extra"]).get(CROP)
