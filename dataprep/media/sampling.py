"""Which source frames a clip of another frame rate takes: by presentation time, never by counting."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dataprep.media.index import FrameIndex
from dataprep.quarantine import ItemError, Reason

_MAX_DENOMINATOR = 1001  # 24000/1001 and its kin are exact


def exact_rate(fps: float | Fraction) -> Fraction:
    """A frame rate as a fraction; raises ValueError unless it is positive."""
    rate = Fraction(fps).limit_denominator(_MAX_DENOMINATOR)
    if rate <= 0:
        raise ValueError(f"frame rate {fps} is not positive")
    return rate


def samples_in(frames: int, source_fps: float | Fraction, fps: float | Fraction) -> int:
    """How many samples at `fps` a span of `frames` at a constant `source_fps` holds."""
    duration = Fraction(frames) / exact_rate(source_fps)
    return -int(-duration * exact_rate(fps) // 1) if frames > 0 else 0


def sample_frames(
    index: FrameIndex, first_frame: int, samples: int, fps: float | Fraction, end_frame: int | None = None
) -> NDArray[np.int64]:
    """Frame numbers (samples,): sample k is the frame nearest in time to first + k / fps, the earlier on a tie.

    `end_frame` (exclusive) bounds the span. Raises ItemError `too_short` when the span ends before the last sample.
    """
    end = index.frames if end_frame is None else min(end_frame, index.frames)
    if not 0 <= first_frame < end:
        raise ItemError(Reason.TOO_SHORT, f"frame {first_frame} of {end}")
    step = 1 / (exact_rate(fps) * index.time_base)  # in ticks of the time base
    start = int(index.pts[first_frame])
    numerators = np.arange(samples, dtype=object) * step.numerator
    # Twice the wanted time, against sums of neighbours: the halfway points stay integers.
    doubled = np.array([2 * (start * step.denominator + n) for n in numerators], dtype=object)
    halfway = (index.pts[first_frame : end - 1] + index.pts[first_frame + 1 : end]).astype(object) * step.denominator
    chosen = first_frame + np.searchsorted(halfway, doubled, side="left").astype(np.int64)
    stop = index.end_pts if end == index.frames else int(index.pts[end])
    if samples and doubled[-1] >= 2 * stop * step.denominator:
        held = int(np.searchsorted(doubled, 2 * stop * step.denominator))
        raise ItemError(Reason.TOO_SHORT, f"{held} of {samples} frames at {float(fps):g} fps")
    return chosen
