"""From boundary probabilities to spans of frames: pure arithmetic, so thresholds can change at no cost."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from dataprep.curate_config import ShotConfig
from dataprep.shots.detector import Probabilities


class Span(NamedTuple):
    """Half-open range of frames."""

    start: int
    end: int

    @property
    def frames(self) -> int:
        return self.end - self.start

    def overlap(self, first: int, last: int) -> int:
        """Frames shared with first..last, both inclusive."""
        return max(0, min(self.end, last + 1) - max(self.start, first))


def scenes(probabilities: Probabilities, first: int, config: ShotConfig) -> list[Span]:
    """Spans of a video part whose frame numbers begin at `first`.

    A frame above the threshold is the last of its scene; in a run of them (a dissolve, a fade) only the
    first stays. `trim_frames` go at every boundary inside the part, none at its two ends.
    """
    flagged = probabilities > config.threshold
    count = len(flagged)
    found = []
    start = 0
    while start < count:
        boundary = start + int(np.argmax(flagged[start:])) if flagged[start:].any() else count
        end = min(boundary + 1, count)
        found.append((start, end))
        start = end
        while start < count and flagged[start - 1] and flagged[start]:
            start += 1
    spans = []
    for begin, end in found:
        left = config.trim_frames if begin > 0 else 0
        right = config.trim_frames if end < count else 0
        if begin + left < end - right:
            spans.append(Span(first + begin + left, first + end - right))
    return [part for span in spans for part in split(span, config.max_frames)]


def split(span: Span, max_frames: int | None) -> list[Span]:
    """Even parts of at most `max_frames`."""
    if max_frames is None or span.frames <= max_frames:
        return [span]
    parts = -(-span.frames // max_frames)
    edges = [span.start + span.frames * k // parts for k in range(parts + 1)]
    return [Span(a, b) for a, b in itertools.pairwise(edges)]
