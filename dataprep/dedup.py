"""Duplicate clips: equal pictures exactly, and near copies by perceptual hashes over several frames.

A clip is a near copy of another when most of its sampled frames have a close frame anywhere in the other:
a trailer's cut finds its film whatever its in and out points. One frame would not do: black ones match all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataprep.curate_config import DedupConfig
from dataprep.signals.phash import distance

Hashes = NDArray[np.uint64]

_BANDS, _BAND_BITS = 4, 16
_PROBES = np.array([0, *(1 << bit for bit in range(_BAND_BITS))], dtype=np.uint64)
_CHUNK = 4096  # queries looked up together


class Duplicate(NamedTuple):
    rule: str  # duplicate_exact | duplicate_near
    of: str  # clip_id of the one that stays


@dataclass(frozen=True)
class Signature:
    """What dedup knows of a clip. `preference` orders clips: the smallest of a group stays.

    `sampled` hashes ask, `dense` hashes answer; hashes of structureless frames (0) are left out of both.
    Only clips of one `media` and of different files are near copies: two shots of one film may well look
    alike, and a still is no copy of the film that it is from.
    """

    clip_id: str
    content: str
    preference: tuple[float, ...]
    sampled: Hashes
    dense: Hashes
    media: str = "video"
    file: str = ""
    perceptual: bool = True


def find_duplicates(clips: Sequence[Signature], config: DedupConfig) -> dict[str, Duplicate]:
    """clip_id -> what it duplicates. Deterministic: clips are taken in order of preference, then of id."""
    ordered = sorted(clips, key=lambda c: (c.preference, c.clip_id))
    found: dict[str, Duplicate] = {}
    if config.exact:
        first: dict[str, str] = {}
        for clip in ordered:
            kept = first.setdefault(f"{clip.media}:{clip.content}", clip.clip_id)
            if kept != clip.clip_id:
                found[clip.clip_id] = Duplicate("duplicate_exact", kept)
    if config.perceptual:
        remaining = [c for c in ordered if c.clip_id not in found and c.perceptual]
        found.update(_near_duplicates(remaining, config))
    return found


def _near_duplicates(ordered: Sequence[Signature], config: DedupConfig) -> dict[str, Duplicate]:
    near: dict[int, set[int]] = defaultdict(set)
    for one, other in _contained(ordered, config):
        near[one].add(other)
        near[other].add(one)
    kept: set[int] = set()
    found: dict[str, Duplicate] = {}
    for place, clip in enumerate(ordered):
        stays = min(near[place] & kept, default=None)
        if stays is None:
            kept.add(place)
        else:
            found[clip.clip_id] = Duplicate("duplicate_near", ordered[stays].clip_id)
    return found


def _contained(clips: Sequence[Signature], config: DedupConfig) -> Iterator[tuple[int, int]]:
    """Pairs (a, b) of places such that enough of a's sampled frames are close to frames of b."""
    if not clips:
        return
    index = HashIndex(np.concatenate([c.dense[c.dense != 0] for c in clips]))
    owners = np.repeat(np.arange(len(clips)), [int(np.count_nonzero(c.dense)) for c in clips])
    for place, clip in enumerate(clips):
        asked = clip.sampled[clip.sampled != 0]
        # At least half of the samples must have structure, or a fade decides alone.
        if 2 * len(asked) < len(clip.sampled) or not len(asked):
            continue
        query, answer = index.within(asked, config.max_distance)
        pairs = np.unique(np.stack([query, owners[answer]], axis=1), axis=0)
        others, matches = np.unique(pairs[:, 1], return_counts=True)
        for other, count in zip(others.tolist(), matches.tolist(), strict=True):
            if count >= config.min_match * len(asked) and _comparable(clip, clips[other]):
                yield place, other


def _comparable(clip: Signature, other: Signature) -> bool:
    return clip.clip_id != other.clip_id and clip.media == other.media and (clip.file != other.file or not clip.file)


class HashIndex:
    """64-bit hashes by four bands of 16 bits, each also looked up with one bit flipped.

    Two hashes at most 7 bits apart have a band with at most one differing bit, so nothing within 7 is missed.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        self._orders, self._starts = [], []
        for band in range(_BANDS):
            values = self._band(hashes, band)
            order = np.argsort(values, kind="stable")
            self._orders.append(order)
            self._starts.append(np.searchsorted(values[order], np.arange((1 << _BAND_BITS) + 1)))

    @staticmethod
    def _band(hashes: Hashes, band: int) -> NDArray[np.int64]:
        return np.asarray((hashes >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF), dtype=np.int64)

    def within(self, queries: Hashes, max_distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (place in queries, place in the index) at most `max_distance` bits apart, without repeats."""
        found = [self._chunk(queries[k : k + _CHUNK], k, max_distance) for k in range(0, len(queries), _CHUNK)]
        pairs = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)
        return pairs[:, 0], pairs[:, 1]

    def _chunk(self, queries: Hashes, offset: int, max_distance: int) -> NDArray[np.int64]:
        found = [np.zeros((0, 2), np.int64)]
        for band in range(_BANDS):
            probed = (self._band(queries, band)[:, None] ^ _PROBES.astype(np.int64)).ravel()
            asking = np.repeat(np.arange(len(queries)), len(_PROBES))
            low, high = self._starts[band][probed], self._starts[band][probed + 1]
            counts = high - low
            # Positions low..high of every probe, laid end to end.
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            answers = self._orders[band][np.repeat(low, counts) + within]
            askers = np.repeat(asking, counts)
            close = distance(queries[askers], self._hashes[answers]) <= max_distance
            found.append(np.stack([askers[close] + offset, answers[close]], axis=1))
        return np.concatenate(found)
