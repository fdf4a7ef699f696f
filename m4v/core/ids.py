"""Stable names of clips and samples (DESIGN, Clip lineage)."""

from __future__ import annotations

import hashlib

_SEPARATOR = b"\x1f"


def _hash(*parts: str) -> str:
    if any("\x1f" in part for part in parts):
        raise ValueError(f"a name with the control character \\x1f has no id: {parts!r}")
    return hashlib.sha256(_SEPARATOR.join(p.encode() for p in parts)).hexdigest()[:32]


def clip_id(dataset: str, source_id: str, start_us: int, end_us: int) -> str:
    """Id of the half-open span [start, end) in integer microseconds; an image has 0, 0.

    Raises ValueError for a span or a name that cannot have an id.
    """
    if start_us < 0 or end_us < start_us:
        raise ValueError(f"span [{start_us}, {end_us}) of {source_id!r} is not a half-open span in time")
    return _hash(dataset, source_id, str(start_us), str(end_us))


def sample_id(clip: str, encoder_digest: str, bucket: str) -> str:
    """Id of one encoding of a clip; also the sample's KEY inside a shard."""
    return _hash(clip, encoder_digest, bucket)
