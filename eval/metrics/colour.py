"""`local.colour_follow`: do object and background have the colours that the prompt names?

A colour is compared by its *direction* in CIELAB from mid grey, not by its distance to the pure word: a
faint red is still more red than green. The score is the word's rank among all colour words, so that 1 means
"no other word fits better" and an unrelated clip has 0.5 on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eval.metrics.clip import Clip, Detail, FloatArray, Frames, Reading, evenly
from m4v.core.palette import COLOURS

MAX_FRAMES = 9
SHORT_SIDE_PX = 64
RING = 1 / 8  # width of the border that shows the background, as a share of the side
MIN_CONTRAST = 8.0  # CIELAB units between an object and its background; below it there is no object to see
MIN_AREA = 0.002
_GREY_RADIUS = 30.0
_FAINT = 10.0  # below this distance from grey a direction counts proportionally less
_LIGHTNESS_WEIGHT = 0.5
# sRGB to XYZ (D65), IEC 61966-2-1.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)


def to_lab(rgb: np.ndarray) -> FloatArray:
    """CIELAB (D65) of sRGB values 0..255, any leading shape."""
    value = np.asarray(rgb, np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _from_grey(lab: FloatArray) -> FloatArray:
    return np.asarray((lab - np.array([50.0, 0.0, 0.0])) * np.array([_LIGHTNESS_WEIGHT, 1.0, 1.0]))


_WORDS = tuple(COLOURS)
_DIRECTIONS = _from_grey(to_lab(np.array([COLOURS[w] for w in _WORDS])))
_UNITS = _DIRECTIONS / np.maximum(np.linalg.norm(_DIRECTIONS, axis=1, keepdims=True), 1e-9)


def similarities(lab: FloatArray) -> dict[str, float]:
    """How well each colour word fits one CIELAB colour, -1..1."""
    vector = _from_grey(lab)
    length = float(np.linalg.norm(vector))
    cosines = _UNITS @ (vector / max(length, 1e-9)) * min(1.0, length / _FAINT)
    fits = {word: float(c) for word, c in zip(_WORDS, cosines, strict=True)}
    fits["grey"] = 1.0 - 2.0 * min(1.0, length / _GREY_RADIUS)
    return fits


def word_rank(lab: FloatArray, word: str) -> float:
    """1 when `word` fits best, 0 when every other colour word fits better."""
    fits = similarities(lab)
    better = sum(fit > fits[word] + 1e-9 for other, fit in fits.items() if other != word)
    return 1.0 - better / (len(fits) - 1)


def nearest_word(lab: FloatArray) -> str:
    fits = similarities(lab)
    return max(fits, key=lambda w: fits[w])


@dataclass(frozen=True)
class Scene:
    """CIELAB of a few frames (n, h, w, 3), the background's colour, and where something differs from it."""

    lab: FloatArray
    background: FloatArray
    distance: FloatArray
    mask: npt.NDArray[np.bool_]

    @property
    def has_object(self) -> bool:
        return bool(self.mask.mean() >= MIN_AREA)


def read_scene(frames: Frames, max_frames: int = MAX_FRAMES) -> Scene:
    """The background is the median colour of the border ring; the object is what differs from it (Otsu's
    threshold on the CIELAB distance)."""
    lab = to_lab(np.stack([_small(frames[i]) for i in evenly(len(frames), max_frames)]))
    height, width = lab.shape[1:3]
    ring = np.ones((height, width), bool)
    top, side = max(1, round(height * RING)), max(1, round(width * RING))
    ring[top:-top, side:-side] = False
    background = np.median(lab[:, ring].reshape(-1, 3), axis=0)
    distance = np.linalg.norm(lab - background, axis=-1)
    return Scene(lab, background, distance, distance > max(MIN_CONTRAST, _otsu(distance)))


def object_colour(scene: Scene) -> FloatArray | None:
    """Median colour of the inner half of the object (blurred edges are mixtures with the background)."""
    if not scene.has_object:
        return None
    core = scene.mask & (scene.distance >= np.median(scene.distance[scene.mask]))
    return np.asarray(np.median(scene.lab[core], axis=0))


def object_mask(frames: Frames) -> npt.NDArray[np.bool_] | None:
    """Where the object is, (n, h, w) over evenly spaced frames from the first to the last; None when nothing
    stands out from the background."""
    scene = read_scene(frames)
    return scene.mask if scene.has_object else None


def colour_follow(clip: Clip) -> Reading:
    """Mean rank of the colour words the prompt states, for object and background. An object that does not
    stand out from the background at all counts 0."""
    facts = clip.facts
    if facts.object_colour is None and facts.background_colour is None:
        return Reading(None)
    scene = read_scene(clip.frames)
    background, found = scene.background, object_colour(scene)
    details: dict[str, Detail] = {
        "background_found": nearest_word(background),
        "object_found": None if found is None else nearest_word(found),
    }
    parts = []
    if facts.background_colour is not None:
        parts.append(word_rank(background, facts.background_colour))
        details["background_rank"] = parts[-1]
    if facts.object_colour is not None:
        parts.append(0.0 if found is None else word_rank(found, facts.object_colour))
        details["object_rank"] = parts[-1]
    return Reading(float(np.mean(parts)), details)


def _small(frame: np.ndarray) -> np.ndarray:
    scale = SHORT_SIDE_PX / min(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA))


def _otsu(values: FloatArray) -> float:
    """Threshold that best splits `values` in two (Otsu 1979), on 256 bins."""
    counts, edges = np.histogram(values, bins=256, range=(0.0, max(float(values.max()), 1e-9)))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    low, high = weight[:-1], weight[-1] - weight[:-1]
    valid = (low > 0) & (high > 0)
    if not valid.any():
        return 0.0
    means = np.divide(total[:-1], low, out=np.zeros_like(centres[:-1]), where=low > 0)
    rest = np.divide(total[-1] - total[:-1], high, out=np.zeros_like(centres[:-1]), where=high > 0)
    between = np.where(valid, low * high * (means - rest) ** 2, -1.0)
    # With two clean classes every split between them is equally good: take the middle one.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best[len(best) // 2]])
