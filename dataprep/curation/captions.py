"""Captions of a clip: those whose frame range covers enough of it, in the order of the listing."""

from __future__ import annotations

from collections.abc import Iterable

from dataprep.shots.scenes import Span
from dataprep.sources.listing import Caption


def captions_of(span: Span, captions: Iterable[Caption], min_overlap: float) -> tuple[str, ...]:
    """Texts of the captions that cover a span."""
    return tuple(caption.text for caption in covering(span, captions, min_overlap))


def covering(span: Span, captions: Iterable[Caption], min_overlap: float) -> list[Caption]:
    """Whole-file captions, and ranges that share at least `min_overlap` of the span's frames; equal texts once."""
    found: dict[str, Caption] = {}
    for caption in captions:
        whole = caption.first_frame is None or caption.last_frame is None
        shared = span.frames if whole else span.overlap(caption.first_frame or 0, caption.last_frame or 0)
        if shared and shared >= min_overlap * span.frames:
            found.setdefault(caption.text, caption)
    return list(found.values())
