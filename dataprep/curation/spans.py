"""Candidate spans of a video: cut at damage, at joints and at changes of size, then at shot boundaries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataprep.curate_config import ShotConfig
from dataprep.shots.scenes import Span, scenes, split

Columns = dict[str, NDArray[Any]]


def sound_spans(columns: Columns, first: int) -> list[Span]:
    """Runs of undamaged frames of one size and one time line; `first` is the frame number of the first row."""
    sound = ~np.asarray(columns["damaged"], dtype=np.bool_)
    change = np.zeros(len(sound), dtype=np.bool_)
    for name in ("width", "height"):
        change[1:] |= np.diff(columns[name]) != 0
    change[1:] |= np.diff(sound) | columns["joint"][1:]
    starts = np.flatnonzero(change | (np.arange(len(sound)) == 0))
    ends = np.append(starts[1:], len(sound))
    return [Span(first + int(a), first + int(b)) for a, b in zip(starts, ends, strict=True) if sound[a]]


def candidate_spans(columns: Columns, first: int, config: ShotConfig, one_shot: bool) -> list[Span]:
    """Spans of the clips of a video part; `one_shot`: no detector judged it."""
    if one_shot:
        return [part for span in sound_spans(columns, first) for part in split(span, config.max_frames)]
    boundary = np.asarray(columns["boundary"], dtype=np.float32)
    return [
        shot
        for span in sound_spans(columns, first)
        for shot in scenes(boundary[span.start - first : span.end - first], span.start, config)
    ]
