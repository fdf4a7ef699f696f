"""Derive `m4v/codec/dct_tables.py` from footage: which 16 basis functions, and their mean and spread.

    python tests/benchmarks/derive_dct_tables.py          # prints the tables and what the choice is worth

Needs the demo assets (`python -m dataprep.assets fetch demo`). Functions are chosen one by one, each time the
one that raises the mean PSNR most over all clips; kinds of footage weigh as in WEIGHTS. Mean and standard
deviation come from the natural kinds alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import av
import cv2
import numpy as np
import numpy.typing as npt

from m4v.codec.basis import OPPONENT, dct_matrix
from m4v.codec.shape import CHANNELS, SPATIAL, TEMPORAL
from m4v.core.asset_catalog import asset_path
from m4v.core.rng import generator

Array = npt.NDArray[np.float64]
Clip = npt.NDArray[np.uint8]

SIZES = ((64, 128), (128, 192))
STRIDES = (1, 2)  # every frame, every second frame
CLIP_FRAMES = 33
WEIGHTS = {"film": 4.0, "street": 3.0, "city": 1.0, "photos": 2.0, "shapes": 2.0}
NATURAL = ("film", "street", "city", "photos")
# Shot starts: some of the captioned shots of `captions.tsv`.
FILM_SHOTS = (36, 285, 560, 800, 1145, 1346, 1456, 1531, 1711, 1813, 1919, 2194, 2394, 2494, 2704, 2831, 2963,
              3045, 3250, 3513, 3578, 3744, 3919, 4100)  # fmt: skip
BIKES_SHOTS = (30, 76, 137, 187)
PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "motorcycle_left.png",
          "cheetah.jpg", "lion.jpg", "Wall.jpg")  # fmt: skip
NOISE_FLOOR = 1e-4  # squared error per value (about 46 dB) below which more accuracy counts for nothing


class Measured(NamedTuple):
    """Mean energy, mean and mean square of every coefficient of one clip's units of one kind."""

    kind: str
    energy: Array
    mean: Array


def fit(picture: Clip, height: int, width: int) -> Clip:
    """Centre crop to the aspect ratio, then area-resize."""
    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    y, x = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    cut = picture[y : y + rows, x : x + columns]
    return np.asarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def video_clips(asset: str, starts: tuple[int, ...], height: int, width: int) -> list[Clip]:
    spans = [(start, stride) for start in starts for stride in STRIDES]
    wanted: dict[int, list[tuple[int, int]]] = {}
    for number, (start, stride) in enumerate(spans):
        for j in range(CLIP_FRAMES):
            wanted.setdefault(start + j * stride, []).append((number, j))
    clips = [np.zeros((CLIP_FRAMES, height, width, 3), np.uint8) for _ in spans]
    with av.open(str(asset_path(asset))) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                picture = fit(frame.to_ndarray(format="rgb24"), height, width)
                for number, j in wanted[index]:
                    clips[number][j] = picture
            if index >= max(wanted):
                break
    return clips


def shapes_clip(seed: int, height: int, width: int) -> Clip:
    """A disc or square of one colour that crosses a shaded background."""
    draw = generator(seed, "shapes")
    back, ink = draw.integers(0, 256, 3), draw.integers(0, 256, 3)
    radius, square = draw.uniform(0.15, 0.3) * height, bool(draw.integers(2))
    place, speed = draw.uniform(0.2, 0.8, 2) * (height, width), draw.normal(0, 1.5, 2) * height / 64
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    clip = np.empty((CLIP_FRAMES, height, width, 3), np.uint8)
    for t in range(CLIP_FRAMES):
        y, x = (place + speed * t) % (height, width)
        away = np.maximum(abs(rows - y), abs(columns - x)) if square else np.hypot(rows - y, columns - x)
        cover = np.clip(radius - away + 0.5, 0, 1)[..., None]  # one pixel of anti-aliasing
        shaded = back * np.linspace(0.7, 1.0, height)[:, None, None]
        clip[t] = np.rint(cover * ink + (1 - cover) * shaded)
    return clip


def corpus(height: int, width: int) -> Iterator[tuple[str, Clip]]:
    for asset, kind, starts in (
        ("film", "film", FILM_SHOTS),
        ("corpus/street/bikes.mp4", "street", BIKES_SHOTS),
        ("corpus/street/carphone_pristine.mp4", "street", (0, 40)),
        ("corpus/street/cityCC0.mpg", "city", (0, 40, 120)),
    ):
        for clip in video_clips(asset, starts, height, width):
            yield kind, clip
    for name in PHOTOS:
        picture = cv2.imread(str(asset_path(f"corpus/photos/{name}")))
        yield "photos", fit(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), height, width)[None]
    for seed in range(24):
        yield "shapes", shapes_clip(seed, height, width)


def coefficients(unit: Clip) -> Array:
    """(blocks, frames * 8 * 8 * 3) coefficients of one unit (T, H, W, 3), pixels in [-1, 1]."""
    frames, height, width, _ = unit.shape
    pixels = (unit / 127.5 - 1).reshape(frames, height // SPATIAL, SPATIAL, width // SPATIAL, SPATIAL, 3)
    time, space = dct_matrix(frames), dct_matrix(SPATIAL)
    return np.einsum(
        "thywxc,kt,uy,vx,dc->hwkuvd", pixels, time, space, space, OPPONENT, optimize=True
    ).reshape(-1, frames * SPATIAL * SPATIAL * 3)  # fmt: skip


def measure() -> tuple[list[Measured], list[Measured]]:
    """Coefficient statistics of first frames and of groups of eight."""
    first: list[Measured] = []
    groups: list[Measured] = []
    for size in SIZES:
        for kind, clip in corpus(*size):
            found = coefficients(clip[:1])
            first.append(Measured(kind, (found**2).mean(0), found.mean(0)))
            rest = [coefficients(clip[i : i + TEMPORAL]) for i in range(1, len(clip), TEMPORAL)]
            if rest:
                found = np.concatenate(rest)
                groups.append(Measured(kind, (found**2).mean(0), found.mean(0)))
    return first, groups


def weights(rows: list[Measured]) -> Array:
    kinds = [row.kind for row in rows]
    raw = np.array([WEIGHTS[k] / kinds.count(k) for k in kinds])
    return raw / raw.sum()


def choose(rows: list[Measured]) -> list[int]:
    energy, weight = np.stack([row.energy for row in rows]), weights(rows)
    left, floor, chosen = energy.sum(1), NOISE_FLOOR * energy.shape[1], list[int]()
    for _ in range(CHANNELS):
        ratio = (np.maximum(left[:, None] - energy, 0) + floor) / (left[:, None] + floor)
        gain = -(weight[:, None] * np.log10(ratio)).sum(0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        left = left - energy[:, chosen[-1]]
    return chosen


def psnr(rows: list[Measured], chosen: list[int]) -> dict[str, float]:
    """Mean PSNR a kind when the other coefficients are dropped (Parseval: no decoding needed)."""
    found: dict[str, list[float]] = {}
    for row in rows:
        error = (row.energy.sum() - row.energy[chosen].sum()) / row.energy.size
        found.setdefault(row.kind, []).append(10 * np.log10(4 / error))
    return {kind: round(float(np.mean(values)), 2) for kind, values in found.items()}


def table(rows: list[Measured], chosen: list[int]) -> list[str]:
    natural = [row for row in rows if row.kind in NATURAL]
    weight = weights(natural)
    lines = []
    for index in chosen:
        time, vertical, horizontal, colour = np.unravel_index(index, (rows[0].energy.size // 192, SPATIAL, SPATIAL, 3))
        mean = float((weight * [row.mean[index] for row in natural]).sum())
        std = float(np.sqrt((weight * [row.energy[index] for row in natural]).sum() - mean**2))
        # Only colour averages have a mean that footage agrees on; other means are accidents of the sample.
        mean = mean if time == vertical == horizontal == 0 else 0.0
        lines.append(f"    BasisFunction({colour}, {time}, {vertical}, {horizontal}, {mean:.4g}, {std:.4g}),")
    return lines


if __name__ == "__main__":
    for name, rows in zip(("FIRST", "GROUP"), measure(), strict=True):
        chosen = choose(rows)
        print(f"{name} = (  # mean PSNR without smoothing: {psnr(rows, chosen)}")
        print(*table(rows, chosen), ")", sep="\n")
