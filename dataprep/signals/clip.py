"""Scores of a clip from its frames' signals: pure numbers, no pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataprep.media.geometry import Box
from dataprep.signals.bars import BAR_MIN, BAR_UNEVEN, BLACK_SHARE
from dataprep.signals.phash import as_text

HASHED_FRAMES = 8
_FROZEN_CHANGE = 0.02  # repeated pictures differ by nothing, or by rounding
_FLASH_LUMA = 20.0
_BAR_QUANTILE = 0.2  # a bar must be there in four frames of five
_COMBED = 0.6  # of `media.interlace.combing`, from which a frame counts as combed
_JITTER_STEPS = 2  # changes of velocity that make a median
_ROUND = 4

Columns = Mapping[str, NDArray[np.generic]]


def clip_scores(columns: Columns, fps: float, box: Box, width: int, height: int) -> dict[str, float | None]:
    """Scores of the frames in `columns`; shares of frames, motion and jitter in pixels a second, None where
    unmeasurable."""
    luma, change = np.asarray(columns["luma"], float), np.asarray(columns["change"], float)
    steps = slice(1, None)  # the first frame's change is against another shot
    motion = np.asarray(columns["motion"], float)[steps]
    moved = motion[~np.isnan(motion)]
    scores = {
        "black": float(np.mean(np.asarray(columns["dark"], float) >= BLACK_SHARE)),
        "overexposed": float(np.mean(np.asarray(columns["bright"], float))),
        "brightness": float(luma.mean()),
        "letterbox": 1.0 - box.width * box.height / (width * height),
        "frozen": float(np.mean(change[steps] < _FROZEN_CHANGE)) if len(luma) > 1 else None,
        "motion": float(moved.mean()) * fps if len(moved) else None,
        "jitter": _jitter(columns, fps),
        "sharpness": float(np.mean(np.asarray(columns["sharpness"], float))),
        "flash": float(np.mean(np.abs(np.diff(luma)) > _FLASH_LUMA)) if len(luma) > 1 else None,
        "blockiness": _blockiness(columns),
        "interlaced": max(float(np.mean(np.asarray(columns["interlaced"], float))), _combed(columns)),
    }
    return {name: None if value is None else round(value, _ROUND) for name, value in scores.items()}


def _jitter(columns: Columns, fps: float) -> float | None:
    """How unsteady the camera is: the median length by which its velocity changes from one measurement to the next,
    in pixels a second. A still camera, a smooth pan and a smooth zoom are near 0; a shaken one turns back at every
    measurement. A single jolt, or a cut inside the clip, changes no median.
    """
    pan = np.stack([np.asarray(columns[name], float)[1:] for name in ("pan_x", "pan_y")], axis=1)
    steps = np.diff(pan[~np.isnan(pan).any(axis=1)], axis=0)
    return float(np.median(np.linalg.norm(steps, axis=1))) * fps if len(steps) >= _JITTER_STEPS else None


def _blockiness(columns: Columns) -> float | None:
    """Mean of `media.blocks.blockiness` over the frames that were looked at."""
    seen = np.asarray(columns.get("blocky", ()), float)
    seen = seen[~np.isnan(seen)]
    return float(np.mean(seen)) if len(seen) else None


def _combed(columns: Columns) -> float:
    """Share of frames that comb, of those that were looked at."""
    seen = np.asarray(columns.get("combed", ()), float)
    seen = seen[~np.isnan(seen)]
    return float(np.mean(seen >= _COMBED)) if len(seen) else 0.0


def content_box(columns: Columns, width: int, height: int) -> Box:
    """The picture inside letterbox or pillarbox bars, even-sided; the whole frame where there are none."""
    top, bottom = _pair(columns, "bar_top", "bar_bottom", height)
    left, right = _pair(columns, "bar_left", "bar_right", width)
    return Box(left, top, width - right, height - bottom)


def _pair(columns: Columns, first: str, second: str, side: int) -> tuple[int, int]:
    shares = []
    for name in (first, second):
        known = np.asarray(columns[name], float)
        known = known[~np.isnan(known)]
        shares.append(float(np.quantile(known, _BAR_QUANTILE)) if len(known) else 0.0)
    if min(shares) < BAR_MIN or abs(shares[0] - shares[1]) > BAR_UNEVEN:
        return 0, 0
    # Two analysis lines of safety, and even sides for chroma.
    before, after = (min(side // 2 - 1, 2 * round((share * side + side / 160) / 2)) for share in shares)
    return before, after


def sampled_hashes(columns: Columns) -> str:
    """Perceptual hashes of `HASHED_FRAMES` frames spread over the clip, as text."""
    hashes = np.asarray(columns["phash"], dtype=np.uint64)
    places = spread(len(hashes), HASHED_FRAMES)
    return as_text(hashes[places])


def content_digest(columns: Columns) -> str:
    """Digest of the decoded pictures: equal for copies in other files and containers."""
    return hashlib.sha256(np.ascontiguousarray(columns["content"]).tobytes()).hexdigest()[:32]


def spread(frames: int, count: int) -> NDArray[np.int64]:
    """Middles of `count` equal parts of a clip, without repeats when the clip is short."""
    return np.unique((2 * np.arange(count) + 1) * frames // (2 * count))
