"""How much moves, where to, and whether that is what the prompt says.

An object's motion is read from its position and area in every frame (it is what differs from the
background's colour); a camera's, or that of a prompt without an object, from optical flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.metrics.clip import Clip, Detail, Reading
from eval.metrics.colour import object_mask
from eval.metrics.flow import summarise_flow
from eval.vocabulary import Motion

MOVED = 0.1  # displacement over the clip, in short sides, from which on a thing has plainly moved
RESIZED = 0.25  # the same for the natural logarithm of its diameter
_DIRECTIONS = {Motion.RIGHT: (1.0, 0.0), Motion.LEFT: (-1.0, 0.0), Motion.DOWN: (0.0, 1.0), Motion.UP: (0.0, -1.0)}


@dataclass(frozen=True)
class Movement:
    """Over the whole clip: displacement in short sides (x right, y down) and change of the logarithm of the
    diameter. `how` says what was measured."""

    right: float
    down: float
    growth: float
    how: str


def motion(clip: Clip) -> Reading:
    """Mean optical flow magnitude over all pixels, short sides per second."""
    flow = summarise_flow(clip.frames, clip.fps)
    return Reading(None) if flow is None else Reading(flow.speed)


def motion_direction(clip: Clip) -> Reading:
    """Cosine between the net motion and the prompt's direction word, -1..1; 0 when nothing moves."""
    wanted = _DIRECTIONS.get(clip.facts.motion) if clip.facts.motion else None
    if wanted is None or len(clip.frames) < 2:
        return Reading(None)
    found = movement(clip)
    return Reading(_cosine(found, wanted), _details(found))


def motion_follow(clip: Clip) -> Reading:
    """Does the motion word hold? 0..1.

    A direction: amount moved x (1 + cosine) / 2, so that still or opposite is 0 and across is 0.5. Grows or
    shrinks: the change of size in the right sense. Stays still: 1 - amount moved or resized.
    """
    word = clip.facts.motion
    if word is None or len(clip.frames) < 2:
        return Reading(None)
    found = movement(clip)
    amount = min(1.0, float(np.hypot(found.right, found.down)) / MOVED)
    growth = float(np.clip(found.growth / RESIZED, -1.0, 1.0))
    if word is Motion.STILL:
        value = 1.0 - max(amount, abs(growth))
    elif word in _DIRECTIONS:
        value = amount * (1.0 + _cosine(found, _DIRECTIONS[word])) / 2
    else:
        value = max(0.0, growth if word is Motion.GROW else -growth)
    return Reading(value, _details(found))


def movement(clip: Clip) -> Movement:
    """Motion of the object when the prompt speaks of one and it can be told apart, else of the picture."""
    tracked = None if clip.facts.camera or clip.facts.shape is None else _track(clip)
    if tracked is not None:
        return tracked
    flow = summarise_flow(clip.frames, clip.fps)
    if flow is None:
        return Movement(0.0, 0.0, 0.0, "flow")
    return Movement(*flow.net, growth=flow.outward * flow.path, how="flow")


def _track(clip: Clip) -> Movement | None:
    """Straight-line fits to the object's centre and the logarithm of its diameter over time."""
    mask = object_mask(clip.frames)
    if mask is None:
        return None
    areas = mask.sum(axis=(1, 2))
    seen = areas > 0
    if seen.sum() < 2:
        return None
    ys, xs = np.mgrid[0 : mask.shape[1], 0 : mask.shape[2]]
    short = min(mask.shape[1:])
    counts = areas[seen]
    time = np.flatnonzero(seen) / (len(mask) - 1)
    track = np.stack(
        [
            (mask[seen] * xs).sum(axis=(1, 2)) / counts / short,
            (mask[seen] * ys).sum(axis=(1, 2)) / counts / short,
            np.log(counts) / 2,
        ],
        axis=1,
    )
    slopes = np.polyfit(time, track, 1)[0]
    return Movement(float(slopes[0]), float(slopes[1]), float(slopes[2]), "object")


def _cosine(found: Movement, wanted: tuple[float, float]) -> float:
    length = float(np.hypot(found.right, found.down))
    return (found.right * wanted[0] + found.down * wanted[1]) / length if length > 1e-6 else 0.0


def _details(found: Movement) -> dict[str, Detail]:
    return {"right": found.right, "down": found.down, "growth": found.growth, "measured_by": found.how}
