"""Captions of a clip: those whose frame range covers enough of it, in the order of the listing."""

from __future__ import annotations

from collections.abc import Iterable

from dataprep.shots.scenes import Span
from dataprep.sources.listing import Caption


def captions_of(span: Span, captions: Iterable[Caption], min_overlap: float) -> tuple[str, ...]:
    """Texts of whole-file captions, and of ranges that share at least `min_overlap` of the span's frames."""
    found = []
    for caption in captions:
        whole = caption.first_frame is None or caption.last_frame is None
        shared = span.frames if whole else span.overlap(caption.first_frame or 0, caption.last_frame or 0)
        if shared and shared >= min_overlap * span.frames and caption.text not in found:
            found.append(caption.text)
    return tuple(found)
