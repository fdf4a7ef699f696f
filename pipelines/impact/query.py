"""The impact query: from clips to everything they touched, by a handful of statements and closed-form exposure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from pipelines.exposure.uses import ClipUses
from pipelines.exposure.verdict import Verdict
from pipelines.impact.checkpoints import affected_checkpoints
from pipelines.impact.model import AffectedChannel, DroppedTable, Holder, Impact, MatchedClip
from pipelines.impact.rows import BY_STRENGTH, AffectedCheckpoints, Products
from pipelines.ledger import Ledger
from pipelines.membership import ClipFacts, ClipSelector


def impact(ledger: Ledger, selector: ClipSelector) -> Impact:
    """What a takedown of the selected clips concerns, from one state of the ledger and nothing else.

    Raises InputError as `Ledger.find_clips` does, and for a dataset that is not in the clip index.
    """
    with ledger.snapshot():
        return _impact(ledger, selector)


def _impact(ledger: Ledger, selector: ClipSelector) -> Impact:
    clips = ledger.find_clips(selector, hashes=False)
    clip_ids = [c.clip_id for c in clips]
    held = ledger.holders_of(clip_ids)
    holders = [
        Holder(artifact_id=a, kind=kind, clip_ids=tuple(sorted(ids.kept)), dropped=tuple(sorted(ids.dropped)))
        for (a, kind), ids in held.items()
        if ids.kept
    ]
    datasets = [h.artifact_id for h in holders if h.kind == "dataset"]
    states, unread = ledger.trained_on(datasets)
    checkpoints = affected_checkpoints(states, ClipUses.everywhere(ledger, clip_ids, datasets))
    verdicts = checkpoints.verdicts
    moves = ledger.moves_to(verdicts)
    return Impact(
        selector=selector.canonical(),
        clips=tuple(sorted(map(_matched, clips), key=lambda c: c.clip_id)),
        holders=tuple(sorted([*holders, *_sources(ledger, holders, clips)], key=lambda h: (h.kind, h.artifact_id))),
        dropped=_dropped(ledger, {a: ids.dropped for (a, _), ids in held.items() if not ids.kept}),
        checkpoints=checkpoints,
        products=_products(ledger, checkpoints, holders),
        channels=tuple(AffectedChannel(n, seq, i, verdicts[i], now, at) for n, seq, i, at, now in moves),
        unread=tuple(unread),
        unindexed=tuple(dict.fromkeys(m.artifact_id for m in ledger.unindexed() if not m.deleted)),
    )


def _matched(clip: ClipFacts) -> MatchedClip:
    return MatchedClip(
        clip_id=clip.clip_id,
        source=clip.source,
        source_id=clip.source_id,
        start_us=clip.start_us,
        end_us=clip.end_us,
        why=", ".join(clip.matched_by),
    )


def _sources(ledger: Ledger, holders: Iterable[Holder], clips: Iterable[ClipFacts]) -> list[Holder]:
    """Listings of the clips' own sources that affected clip tables were curated from."""
    tables = {h.artifact_id: set(h.clip_ids) for h in holders if h.kind == "clips"}
    of_source: dict[str, set[str]] = {}
    for clip in clips:
        of_source.setdefault(clip.source, set()).add(clip.clip_id)
    found: dict[str, set[str]] = {}
    for link in ledger.sources_of(tables):
        if ids := tables[link.clips_id] & of_source.get(link.name, set()):
            found.setdefault(link.source_id, set()).update(ids)
    return [Holder(artifact_id=a, kind="source", clip_ids=tuple(sorted(ids))) for a, ids in found.items()]


def _dropped(ledger: Ledger, tables: Mapping[str, Collection[str]]) -> tuple[DroppedTable, ...]:
    shown = ledger.reports_on(tables) if tables else {}
    return tuple(
        DroppedTable(artifact_id=a, clip_ids=tuple(sorted(ids)), reports=tuple(sorted(shown.get(a, ()))))
        for a, ids in sorted(tables.items())
    )


def _products(ledger: Ledger, checkpoints: AffectedCheckpoints, holders: Sequence[Holder]) -> Products:
    """What was made from the checkpoints, and from the holders without passing through a checkpoint."""
    held = ledger.numbers_of((h.artifact_id, h.kind) for h in holders)
    stems = [checkpoints.numbers[checkpoints.strength == strong] for strong in range(len(BY_STRENGTH))]
    contained = BY_STRENGTH.index(Verdict.CONTAINS)
    stems[contained] = np.append(stems[contained], np.array(list(held.values()), dtype=np.int64))
    return Products(ledger.products_of(stems), ledger.ids_of)
