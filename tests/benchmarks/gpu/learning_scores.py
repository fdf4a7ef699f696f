"""What videos of the learning check show, held against what their prompts ask for, with intervals and exact chance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from learning_corpus import BACKGROUNDS, COLOURS, FPS, MOTIONS, SHAPES, Words

from eval.metrics.clip import Clip
from eval.metrics.colour import object_colour, read_scene, similarities
from eval.metrics.motion import direction_found
from eval.metrics.shape import shape_fits
from eval.vocabulary import parse_facts

CHANCE = {"colour": 1 / len(COLOURS), "shape": 1 / len(SHAPES), "motion": 1 / len(MOTIONS),
          "background": 1 / len(BACKGROUNDS)}  # fmt: skip
CHANCE["all"] = math.prod(CHANCE.values())


class Found(NamedTuple):
    """Words that fit a video best, out of the corpus's; None where there is no object, or it does not move."""

    colour: str | None
    shape: str | None
    motion: str | None
    background: str


class Accuracy(NamedTuple):
    """Share of right videos, its 95 % interval (Wilson) and what unrelated prompts get: for uniform words, and for
    these very videos under every other's prompt."""

    right: int
    of: int
    low: float
    high: float
    chance: float
    shuffled: float


def found_in(frames: np.ndarray) -> Found:
    scene = read_scene(frames)
    colour, fits = object_colour(scene), shape_fits(frames)
    back = similarities(scene.background)
    front = None if colour is None else similarities(colour)
    # The direction is read from pixels alone; the sentence only says that there is an object and no camera.
    clip = Clip(frames, FPS, "", parse_facts("a circle"))
    motion = direction_found(clip)
    return Found(
        None if front is None else max(COLOURS, key=lambda w: front[w]),
        None if fits is None else max(SHAPES, key=lambda w: fits[w]),
        None if motion is None else str(motion.value),
        max(BACKGROUNDS, key=lambda w: back[w]),
    )


def accuracies(asked: Sequence[Words], found: Sequence[Found]) -> dict[str, Accuracy]:
    """Of each word, and of all four together."""
    result = {}
    for name in CHANCE:
        names = Found._fields if name == "all" else (name,)
        wanted = [tuple(getattr(w, n) for n in names) for w in asked]
        seen = [tuple(getattr(f, n) for n in names) for f in found]
        right = sum(a == b for a, b in zip(wanted, seen, strict=True))
        shuffled = sum(a == b for a in wanted for b in seen) / len(wanted) ** 2
        result[name] = Accuracy(right, len(wanted), *wilson(right, len(wanted)), CHANCE[name], shuffled)
    return result


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share."""
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / of / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def table(title: str, found: dict[str, Accuracy]) -> str:
    lines = [f"{title:34} {'right':>9} {'accuracy':>9} {'95 % interval':>15} {'chance':>7} {'shuffled':>9}"]
    for name, a in found.items():
        lines.append(
            f"  {name:32} {a.right:>4}/{a.of:<4} {a.right / a.of:>9.3f} {a.low:>7.3f}-{a.high:<7.3f} "
            f"{a.chance:>7.3f} {a.shuffled:>9.3f}"
        )
    return "\n".join(lines)


def contact_sheet(
    videos: Sequence[np.ndarray], prompts: Sequence[str], found: Sequence[Found], frames: int = 6, tile: int = 112
) -> np.ndarray:
    """A row of evenly spaced frames for each video beside its prompt, and what was found in it."""
    rows = []
    for video, prompt, seen in zip(videos, prompts, found, strict=True):
        label = np.full((tile, 2 * tile, 3), 255, np.uint8)
        lines = [*textwrap.wrap(prompt, 28), "found: " + " ".join(str(w) for w in seen[:3]), f"on {seen.background}"]
        for number, line in enumerate(lines):
            cv2.putText(label, line, (4, 16 + 15 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        chosen = np.linspace(0, len(video) - 1, frames).round().astype(int)
        tiles = [cv2.resize(video[i], (tile, tile), interpolation=cv2.INTER_AREA) for i in chosen]
        framed = [cv2.copyMakeBorder(t, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(160, 160, 160)) for t in tiles]
        rows.append(np.concatenate([cv2.copyMakeBorder(label, 1, 1, 1, 1, cv2.BORDER_CONSTANT), *framed], axis=1))
    return np.concatenate(rows)
