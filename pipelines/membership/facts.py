"""What the clip index answers with: frozen values, ids as hex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class SampleGroup(NamedTuple):
    """Samples that a data order cannot tell apart but by id: one source, one medium, one latent size."""

    source: str
    media: str
    t: int
    h: int
    w: int


class SampleRef(NamedTuple):
    """A sample of a clip in a dataset."""

    clip_id: str
    sample_id: str
    group: SampleGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """A clip of the index. Its span [start, end) is in microseconds, 0, 0 for an image.

    `source_digests` are of the source file, more than one where it was replaced under its name; `phash` holds the
    perceptual hashes of its frames as hex words joined by dashes, None where they were not asked for. `matched_by`
    says which terms of the question found it, as `overlaps CLIP` where it shares footage of one source file with a
    clip that a term named.
    """

    clip_id: str
    source: str
    source_id: str
    start_us: int
    end_us: int
    source_digests: tuple[str, ...]
    phash: str | None
    matched_by: tuple[str, ...]

    @property
    def is_image(self) -> bool:
        return self.end_us == 0
