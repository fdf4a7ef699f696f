"""Antialiased pictures of flat shapes from signed distances, in plain NumPy: same arguments, same bytes.

Coordinates are in pixels, x to the right and y downwards, pixel centres at +0.5.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


def grid(height: int, width: int) -> tuple[Plane, Plane]:
    """x and y of every pixel centre, each (1, width) and (height, 1)."""
    x = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)
    return x, np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)


def distance(shape: str, x: Plane, y: Plane, radius: float) -> Plane:
    """Signed distance in pixels (negative inside) to a shape of that circumradius about the origin."""
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - np.float32(radius), dtype=np.float32)
    if shape == "star":
        return polygon_distance(x, y, _star(radius))
    corners, turn = {"square": (4, 0.25 * math.pi), "diamond": (4, 0.0), "triangle": (3, -0.5 * math.pi),
                     "hexagon": (6, 0.0)}[shape]  # fmt: skip
    return polygon_distance(x, y, _regular(corners, radius, turn))


def _regular(corners: int, radius: float, turn: float) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(radius: float) -> list[tuple[float, float]]:
    angles = [-0.5 * math.pi + math.pi * k / 5 for k in range(10)]
    radii = [radius if k % 2 == 0 else 0.45 * radius for k in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def polygon_distance(x: Plane, y: Plane, corners: list[tuple[float, float]]) -> Plane:
    """Signed distance to a simple polygon: the nearest edge, the sign by counting edge crossings."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, dtype=np.float32)
    inside = np.zeros(nearest.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ey != 0:
            crosses = ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
            inside ^= crosses
    root = np.sqrt(nearest)
    return np.asarray(np.where(inside, -root, root), dtype=np.float32)


def paint(picture: npt.NDArray[np.float32], signed: Plane, colour: Colour) -> None:
    """Lay a shape over a float picture (H, W, 3) in place; its edge is one pixel wide."""
    cover = np.clip(np.float32(0.5) - signed, 0, 1)[..., None]
    picture += cover * (np.asarray(colour, dtype=np.float32) - picture)


def canvas(height: int, width: int, colour: Colour) -> npt.NDArray[np.float32]:
    return np.broadcast_to(np.asarray(colour, dtype=np.float32), (height, width, 3)).copy()


def to_bytes(picture: npt.NDArray[np.float32]) -> Picture:
    return np.asarray(np.clip(np.rint(picture), 0, 255), dtype=np.uint8)
