"""Small exact scenes for the evaluation tests: a shape in one colour that moves on another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from eval.metrics.clip import Clip
from eval.vocabulary import Facts, Motion, parse_facts
from m4v.core.palette import COLOURS

PHRASES = {
    Motion.RIGHT: "moves from left to right",
    Motion.LEFT: "moves from right to left",
    Motion.UP: "moves from bottom to top",
    Motion.DOWN: "moves from top to bottom",
    Motion.GROW: "grows",
    Motion.SHRINK: "shrinks",
    Motion.STILL: "stays still",
}
_PATHS = {Motion.RIGHT: (1, 0), Motion.LEFT: (-1, 0), Motion.DOWN: (0, 1), Motion.UP: (0, -1)}


def caption(colour: str, shape: str, motion: Motion, background: str) -> str:
    return f"a {colour} {shape} {PHRASES[motion]} on a {background} background"


def scene(
    colour: str, shape: str, motion: Motion, background: str,
    frames: int = 17, height: int = 64, width: int = 96, noise: float = 3.0,
) -> np.ndarray:  # fmt: skip
    """uint8 (T, H, W, 3) with sensor-like noise (standard deviation in levels of 255)."""
    rng = np.random.default_rng(len(colour) * 31 + len(background))
    ys, xs = np.mgrid[0:height, 0:width]
    base = np.empty((frames, height, width, 3))
    for t in range(frames):
        u = t / max(frames - 1, 1) - 0.5
        dx, dy = _PATHS.get(motion, (0, 0))
        cx, cy = width / 2 + 0.6 * u * dx * width, height / 2 + 0.5 * u * dy * height
        radius = height / 6 * (1 + (u if motion is Motion.GROW else -u if motion is Motion.SHRINK else 0))
        if shape == "square":
            inside = np.maximum(abs(xs - cx), abs(ys - cy)) < radius
        elif shape == "triangle":
            inside = (ys - cy < radius) & (ys - cy > -radius + 2 * abs(xs - cx))
        else:
            inside = np.hypot(xs - cx, ys - cy) < radius
        base[t] = np.where(inside[..., None], COLOURS[colour], COLOURS[background])
    return np.clip(base + rng.normal(0, noise, base.shape), 0, 255).astype(np.uint8)


def clip_of(text: str, frames: np.ndarray, fps: float = 8.0, facts: Facts | None = None) -> Clip:
    return Clip(frames=frames, fps=fps, prompt=text, facts=facts or parse_facts(text))


def true_clips() -> Iterator[tuple[str, np.ndarray]]:
    """Two dozen captions with the clips they describe, balanced over words."""
    colours = ["red", "blue", "green", "yellow", "white", "black", "orange", "purple"]
    motions = itertools.cycle(PHRASES)
    shapes = itertools.cycle(["circle", "square", "triangle"])
    for k in range(24):
        colour, background = colours[k % 8], colours[(k + 1 + k // 8) % 8]
        motion, shape = next(motions), next(shapes)
        yield caption(colour, shape, motion, background), scene(colour, shape, motion, background)
