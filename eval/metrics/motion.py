"""How much moves, where to, and whether that is what the prompt says.

An object's motion is read from its position and area in every frame (it is what differs from the
background's colour); a camera's, or that of a prompt without an object, from optical flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.metrics.clip import Clip, Detail, FloatArray, Reading
from eval.metrics.colour import object_mask
from eval.metrics.flow import summarise_flow
from eval.vocabulary import Motion

MOVED = 0.1  # displacement over the clip, in short sides, from which on a thing has plainly moved
FULL_TURN = 0.9  # turns that count as a whole one
RESIZED = 0.25  # the same for the natural logarithm of its diameter
_DIRECTIONS = {Motion.RIGHT: (1.0, 0.0), Motion.LEFT: (-1.0, 0.0), Motion.DOWN: (0.0, 1.0), Motion.UP: (0.0, -1.0)}


@dataclass(frozen=True)
class Movement:
    """Over the whole clip, lengths in short sides: displacement (x right, y down), change of the logarithm of
    the diameter, how far apart its places are, and turns made round their middle. `how`: what was measured."""

    right: float
    down: float
    growth: float
    extent: float
    turns: float
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
    shrinks: the change of size in the right sense. A circle: the share of a full turn, either way. Stays still:
    1 - amount moved or resized.
    """
    word = clip.facts.motion
    if word is None or len(clip.frames) < 2:
        return Reading(None)
    found = movement(clip)
    amount = min(1.0, float(np.hypot(found.right, found.down)) / MOVED)
    extent = min(1.0, found.extent / MOVED)
    growth = float(np.clip(found.growth / RESIZED, -1.0, 1.0))
    if word is Motion.STILL:
        value = 1.0 - max(extent, abs(growth))
    elif word is Motion.CIRCLE:
        value = extent * min(1.0, abs(found.turns) / FULL_TURN)
    elif word in _DIRECTIONS:
        value = amount * (1.0 + _cosine(found, _DIRECTIONS[word])) / 2
    else:
        value = max(0.0, growth if word is Motion.GROW else -growth)
    return Reading(value, _details(found))


def direction_found(clip: Clip) -> Motion | None:
    """Which of right, left, down and up the clip's net motion is nearest to; None when nothing has plainly moved."""
    if len(clip.frames) < 2:
        return None
    found = movement(clip)
    if np.hypot(found.right, found.down) < MOVED:
        return None
    return max(_DIRECTIONS, key=lambda word: _cosine(found, _DIRECTIONS[word]))


def movement(clip: Clip) -> Movement:
    """Motion of the object when the prompt speaks of one and it can be told apart, else of the picture."""
    tracked = None if clip.facts.camera or clip.facts.shape is None else _track(clip)
    if tracked is not None:
        return tracked
    flow = summarise_flow(clip.frames, clip.fps)
    if flow is None:
        return Movement(0.0, 0.0, 0.0, 0.0, 0.0, "flow")
    places = np.cumsum(np.concatenate([np.zeros((1, 2)), flow.steps]), axis=0)
    return Movement(*flow.net, flow.outward * flow.path, _extent(places), _turns(places), "flow")


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
    places = np.stack([(mask[seen] * axis).sum(axis=(1, 2)) / counts / short for axis in (xs, ys)], axis=1)
    right, down, growth = np.polyfit(time, np.column_stack([places, np.log(counts) / 2]), 1)[0]
    return Movement(float(right), float(down), float(growth), _extent(places), _turns(places), "object")


def _extent(places: FloatArray) -> float:
    """Diagonal of the box that holds all places."""
    return float(np.hypot(*np.ptp(places, axis=0)))


def _turns(places: FloatArray) -> float:
    """Signed turns round the middle of the places' box; a path that passes close to the middle has none."""
    offset = places - (places.max(axis=0) + places.min(axis=0)) / 2
    radius = np.linalg.norm(offset, axis=1)
    if radius.min() < 0.5 * radius.max():
        return 0.0
    steps = np.diff(np.arctan2(offset[:, 1], offset[:, 0]))
    return float(((steps + np.pi) % (2 * np.pi) - np.pi).sum() / (2 * np.pi))


def _cosine(found: Movement, wanted: tuple[float, float]) -> float:
    length = float(np.hypot(found.right, found.down))
    return (found.right * wanted[0] + found.down * wanted[1]) / length if length > 1e-6 else 0.0


def _details(found: Movement) -> dict[str, Detail]:
    return {
        "right": found.right,
        "down": found.down,
        "growth": found.growth,
        "turns": found.turns,
        "measured_by": found.how,
    }
