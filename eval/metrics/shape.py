"""`local.shape_follow`: does the object have the shape that the prompt names?

The object's cover, brought to one size about its own centre and averaged over frames, is held against drawn
templates of equal area in their usual upright pose. Like the colour's, the score is the word's rank among all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import cv2
import numpy as np

from eval.metrics.clip import Clip, FloatArray, Frames, Reading
from eval.metrics.colour import object_colour, read_scene

GRID = 48  # places of a side on which covers are compared
REACH = 2.2  # half a side of the grid, in radii of the disc of equal area: a star's points fit
_SYNONYMS = {"ball": "circle", "disc": "circle"}
_SMOOTHING = 1.0  # of both sides, in places of the grid: a codec blurs edges, which says nothing of the shape
_MIN_PIXELS = 12.0
_FINE = 8  # templates are drawn so many times finer


def _corners(count: int, turn: float) -> list[tuple[float, float]]:
    return [(math.cos(turn + math.tau * k / count), math.sin(turn + math.tau * k / count)) for k in range(count)]


def _star() -> list[tuple[float, float]]:
    points = _corners(10, -math.pi / 2)
    return [(x, y) if k % 2 == 0 else (0.45 * x, 0.45 * y) for k, (x, y) in enumerate(points)]


_POLYGONS: Mapping[str, list[tuple[float, float]]] = {
    "circle": _corners(180, 0.0),
    "square": _corners(4, math.pi / 4),
    "diamond": _corners(4, 0.0),
    "triangle": _corners(3, -math.pi / 2),
    "hexagon": _corners(6, 0.0),
    "star": _star(),
}
SHAPES = tuple(_POLYGONS)


@cache
def _template(word: str) -> FloatArray:
    """Cover (GRID, GRID) of a shape of the unit disc's area, its centre of mass in the middle."""
    corners = np.array(_POLYGONS[word])
    x, y = corners.T
    cross = x * np.roll(y, -1) - y * np.roll(x, -1)
    area = cross.sum() / 2
    centre = np.array([((a + np.roll(a, -1)) * cross).sum() / (6 * area) for a in (x, y)])
    side = GRID * _FINE
    places = (corners - centre) * math.sqrt(math.pi / abs(area)) / REACH * side / 2 + side / 2 - 0.5
    picture = np.zeros((side, side), np.uint8)
    cv2.fillPoly(picture, [np.rint(places).astype(np.int32)], 1)
    return _smooth(picture.astype(np.float64).reshape(GRID, _FINE, GRID, _FINE).mean(axis=(1, 3)))


def shape_fits(frames: Frames) -> dict[str, float] | None:
    """How well each shape word fits what stands out from the background: overlap over union of the covers, 0..1.
    None when nothing stands out."""
    cover = object_cover(frames)
    if cover is None:
        return None
    return {
        word: float(np.minimum(cover, _template(word)).sum() / np.maximum(cover, _template(word)).sum())
        for word in SHAPES
    }


def object_cover(frames: Frames) -> FloatArray | None:
    """Mean cover (GRID, GRID), 0..1, of the object over evenly spaced frames, each moved and scaled to the templates'
    centre and area."""
    scene = read_scene(frames)
    colour = object_colour(scene)
    if colour is None:
        return None
    contrast = float(np.linalg.norm(colour - scene.background))
    covers = [_normalised(np.clip(distance / contrast, 0.0, 1.0)) for distance in scene.distance]
    known = [cover for cover in covers if cover is not None]
    return np.asarray(np.mean(known, axis=0)) if known else None


def _normalised(cover: FloatArray) -> FloatArray | None:
    """Of one frame; None when no object is in it."""
    # What is nearer to the background than to the object is not of it: a codec's ringing would weigh far from it.
    solid = _largest(cover > 0.5)
    if solid is None:
        return None
    near = cv2.dilate(solid.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    cover = np.where(near, cover, 0.0)
    area = float(cover.sum())
    ys, xs = np.mgrid[0 : cover.shape[0], 0 : cover.shape[1]]
    middle = float((cover * xs).sum()) / area, float((cover * ys).sum()) / area
    step = REACH * math.sqrt(area / math.pi) / (GRID / 2)  # pixels from one place to the next
    offset = -step * (GRID - 1) / 2
    to_pixels = np.array([[step, 0.0, middle[0] + offset], [0.0, step, middle[1] + offset]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _smooth(np.asarray(cv2.warpAffine(cover, to_pixels, (GRID, GRID), flags=flags), np.float64))


def _largest(mask: np.ndarray) -> np.ndarray | None:
    """The largest connected part of a mask; None when it is too small to have a shape."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == best) if stats[best, cv2.CC_STAT_AREA] >= _MIN_PIXELS else None


def _smooth(cover: FloatArray) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(cover, (0, 0), _SMOOTHING), np.float64)


def shape_follow(clip: Clip) -> Reading:
    """Rank of the prompt's shape word among all shapes that have a template: 1 when none fits better, 0 when every
    other does or nothing stands out. Not taken where the prompt names none of them, or the camera moves over many."""
    stated = clip.facts.shape or ""
    word = _SYNONYMS.get(stated, stated)
    if word not in _POLYGONS or clip.facts.camera:
        return Reading(None)
    fits = shape_fits(clip.frames)
    if fits is None:
        return Reading(0.0, {"shape_found": None})
    better = sum(fit > fits[word] + 1e-9 for other, fit in fits.items() if other != word)
    found = max(fits, key=lambda w: fits[w])
    return Reading(1.0 - better / (len(fits) - 1), {"shape_found": found, "overlap": fits[word]})
