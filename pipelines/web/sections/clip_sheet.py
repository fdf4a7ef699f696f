"""The contact sheet of a clip table: a capped sample of cards with captions, scores and reasons. No HTML here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from dataprep.curation.table import CLIPS, PREVIEWS, SCORES
from pipelines.inspection.clip_table import KEPT, ClipTable, Labels
from pipelines.inspection.samples import Row, group_counts, rows_at, spread_sample
from pipelines.web.media import MediaBudget

_COLUMNS = (
    "clip_id", "source", "source_id", "path", "media", "start_us", "end_us", "frames", "fps", "width", "height",
    "captions", "drop_rule", "duplicate_of", "licence", *(f"score_{name}" for name in SCORES),
)  # fmt: skip
_CAPTION_CHARS = 600
_STILL_HEIGHT = 132  # pixels; that of `.still`


@dataclass(frozen=True)
class Still:
    """A picture and its size in pixels: its place is kept before it is there, so that nothing moves under a pointer."""

    address: str
    width: int
    height: int

    @property
    def shown_width(self) -> int:
        return min(self.width, round(_STILL_HEIGHT * self.width / self.height))


@dataclass(frozen=True)
class SheetCard:
    """`original`: the preview of the clip that this one is a copy of; `then`: the fate in a what-if."""

    clip_id: str
    source: str
    fate: str
    then: str
    captions: tuple[str, ...]
    where: str
    facts: str
    licence: str
    scores: tuple[tuple[str, float], ...]
    preview: Still | None
    duplicate_of: str | None
    original: Still | None


@dataclass(frozen=True)
class ClipSheet:
    """`groups`: (fate, source, clips of the whole table, fate then), so that the page can say what it leaves out."""

    cards: tuple[SheetCard, ...]
    groups: tuple[tuple[str, str, int, str], ...]
    total: int
    fates: tuple[tuple[str, int], ...]
    sources: tuple[tuple[str, int], ...]
    scores: tuple[str, ...]


def gather(table: ClipTable, media: MediaBudget, wanted: int, then: Labels | None = None) -> ClipSheet:
    """Cards of at most `wanted` clips; pictures as far as the budget goes. `then`: the fates of a what-if."""
    places = spread_sample(table, wanted, then)
    rows = rows_at(table.artifact.path(CLIPS), places, _COLUMNS)
    present = set(table.artifact.names(f"{PREVIEWS}/"))
    after = table.fates if then is None else then
    cards = tuple(_card(table, row, after[p], present, media) for row, p in zip(rows, places.tolist(), strict=True))
    groups = tuple(group_counts(table, then))
    return ClipSheet(
        cards=cards, groups=groups, total=table.clips,
        fates=_totals((fate, n) for fate, _, n, _ in groups),
        sources=_totals((source, n) for _, source, n, _ in groups),
        scores=tuple(sorted({name for card in cards for name, _ in card.scores})),
    )  # fmt: skip


def _totals(pairs: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Kept first, then the most."""
    found: dict[str, int] = {}
    for name, count in pairs:
        found[name] = found.get(name, 0) + count
    return tuple(sorted(found.items(), key=lambda p: (p[0] != KEPT, -p[1], p[0])))


def _card(table: ClipTable, row: Row, then: str, present: set[str], media: MediaBudget) -> SheetCard:
    where = str(row["path"])
    facts = f"{row['width']}×{row['height']}"
    if row["media"] == "video":
        where += f", {row['start_us'] / 1e6:.1f} to {row['end_us'] / 1e6:.1f} s"
        facts += f", {row['frames']} frames at {row['fps']:.4g} fps"
    copied = row.get("duplicate_of")
    return SheetCard(
        clip_id=row["clip_id"], source=row["source"], fate=row["drop_rule"] or KEPT, then=then,
        captions=tuple(_cut(c) for c in row["captions"] or ()), where=where, facts=facts,
        licence=row.get("licence") or "", scores=_scores(row),
        preview=_preview(table, row["clip_id"], present, media), duplicate_of=copied,
        original=_preview(table, copied, present, media) if copied else None,
    )  # fmt: skip


def _scores(row: Row) -> tuple[tuple[str, float], ...]:
    found = [(name, row.get(f"score_{name}")) for name in SCORES]
    return tuple((name, float(value)) for name, value in found if value is not None)


def _preview(table: ClipTable, clip_id: str, present: set[str], media: MediaBudget) -> Still | None:
    name = f"{PREVIEWS}/{clip_id}.jpg"
    if name not in present:
        return None
    path = table.artifact.path(name)
    address = media.embed(path)
    if address is None:
        return None
    with Image.open(path) as picture:
        return Still(address, *picture.size)


def _cut(text: str) -> str:
    return text if len(text) <= _CAPTION_CHARS else text[:_CAPTION_CHARS] + "…"


@dataclass(frozen=True)
class RejectRow:
    """Of each source the count and its share, 0..1, of the source's clips (quarantined items among them)."""

    reason: str
    quarantined: bool
    cells: tuple[tuple[int, float], ...]
    total: int


@dataclass(frozen=True)
class RejectMap:
    sources: tuple[str, ...]
    rows: tuple[RejectRow, ...]


def reject_map(groups: Sequence[tuple[str, str, int, str]], held: Iterable[tuple[str, str]]) -> RejectMap:
    """`groups`: (fate, source, clips, …); `held`: (reason, source) of each quarantined item."""
    dropped: Counter[tuple[str, str]] = Counter()
    away = Counter(held)
    sizes: Counter[str] = Counter()
    for fate, source, count, _ in groups:
        sizes[source] += count
        if fate != KEPT:
            dropped[fate, source] += count
    for (_, source), count in away.items():
        sizes[source] += count
    sources = tuple(name for name, _ in sorted(sizes.items(), key=lambda p: (-p[1], p[0])))
    rows = [*_reject_rows(dropped, False, sources, sizes), *_reject_rows(away, True, sources, sizes)]
    return RejectMap(sources, tuple(sorted(rows, key=lambda row: (-row.total, row.reason))))


def _reject_rows(
    counts: Mapping[tuple[str, str], int], quarantined: bool, sources: Sequence[str], sizes: Mapping[str, int]
) -> Iterator[RejectRow]:
    for reason in {reason for reason, _ in counts}:
        cells = tuple((n := counts.get((reason, source), 0), n / sizes[source]) for source in sources)
        yield RejectRow(reason, quarantined, cells, sum(n for n, _ in cells))
