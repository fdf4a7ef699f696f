"""The impact query: from clips to everything they touched, by a handful of statements and closed-form exposure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipelines.exposure.uses import ClipUses
from pipelines.exposure.verdict import Verdict
from pipelines.impact.checkpoints import affected_checkpoints
from pipelines.impact.model import AffectedChannel, Holder, Impact, MatchedClip
from pipelines.ledger import Ledger
from pipelines.membership import ClipFacts, ClipSelector


def impact(ledger: Ledger, selector: ClipSelector) -> Impact:
    """What a takedown of the selected clips concerns, from the ledger alone.

    Raises InputError as `Ledger.find_clips` does, and for a dataset that is not in the clip index.
    """
    clips = ledger.find_clips(selector)
    clip_ids = [c.clip_id for c in clips]
    held = {a: sorted(ids) for a, ids in ledger.artifacts_with(clip_ids).items()}
    kinds = ledger.kinds_of(held)
    holders = [Holder(artifact_id=a, kind=kinds[a], clip_ids=tuple(ids)) for a, ids in held.items() if a in kinds]
    datasets = [h.artifact_id for h in holders if h.kind == "dataset"]
    states, unread = ledger.trained_on(datasets)
    checkpoints = affected_checkpoints(states, ClipUses.everywhere(ledger, clip_ids, datasets))
    verdicts = {c.artifact_id: c.verdict for c in checkpoints}
    moves = ledger.moves_to(verdicts)
    return Impact(
        selector=selector.canonical(),
        clips=tuple(sorted(map(_matched, clips), key=lambda c: c.clip_id)),
        holders=tuple(sorted([*holders, *_sources(ledger, holders, clips)], key=lambda h: (h.kind, h.artifact_id))),
        checkpoints=tuple(checkpoints),
        made=_made(ledger, verdicts | {h.artifact_id: Verdict.CONTAINS for h in holders}),
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


def _made(ledger: Ledger, verdicts: Mapping[str, Verdict]) -> dict[tuple[str, Verdict], set[str]]:
    """Products by kind and the strongest verdict on what they were made from."""
    stems: dict[Verdict, list[str]] = {Verdict.SAW: [], Verdict.DESCENDS: [], Verdict.CONTAINS: []}
    for artifact_id, verdict in verdicts.items():
        stems[verdict].append(artifact_id)
    found: dict[tuple[str, Verdict], set[str]] = {}
    for verdict, ids in stems.items():
        for kind, made in ledger.made_from(ids).items() if ids else ():
            stronger = [told for (of, _), told in found.items() if of == kind]
            if fresh := made.difference(*stronger):
                found[kind, verdict] = fresh
    return found
