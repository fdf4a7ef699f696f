"""The 16 basis functions of the transform codec, for the first frame and for a group of eight, with the
mean and standard deviation of each coefficient on natural footage.

Measured by `tests/benchmarks/derive_dct_tables.py` on the film (24 shots), street and city footage, photos and
drawn shapes, at 64x128 and 128x192, every and every second frame. A function is taken when it raises the mean
PSNR most; without smoothing the kept sets give, in dB: first frame film 28.8, street 27.9, city 20.4,
photos 25.9, shapes 34.8; groups film 26.0, street 23.4, city 19.7, shapes 28.7. Changing a row changes the
codec's digest and makes old latents unreadable on purpose.
"""

from __future__ import annotations

import math

from m4v.codec.basis import BasisFunction
from m4v.codec.shape import TEMPORAL

FIRST = (
    BasisFunction(0, 0, 0, 0, -1.433, 6.043),
    BasisFunction(2, 0, 0, 0, 0.5542, 2.114),
    BasisFunction(1, 0, 0, 0, 0.3641, 1.027),
    BasisFunction(0, 0, 1, 0, 0, 1.403),
    BasisFunction(0, 0, 0, 1, 0, 1.27),
    BasisFunction(0, 0, 2, 0, 0, 0.7626),
    BasisFunction(0, 0, 0, 2, 0, 0.6751),
    BasisFunction(0, 0, 1, 1, 0, 0.7012),
    BasisFunction(2, 0, 1, 0, 0, 0.4223),
    BasisFunction(2, 0, 0, 1, 0, 0.3156),
    BasisFunction(0, 0, 3, 0, 0, 0.5106),
    BasisFunction(0, 0, 1, 2, 0, 0.477),
    BasisFunction(0, 0, 2, 1, 0, 0.5019),
    BasisFunction(0, 0, 0, 3, 0, 0.4268),
    BasisFunction(1, 0, 1, 0, 0, 0.2289),
    BasisFunction(1, 0, 0, 1, 0, 0.188),
)

GROUP = (
    BasisFunction(0, 0, 0, 0, -1.135, 17.01),
    BasisFunction(2, 0, 0, 0, 0.7935, 5.544),
    BasisFunction(1, 0, 0, 0, 1.435, 2.928),
    BasisFunction(0, 0, 1, 0, 0, 3.64),
    BasisFunction(0, 0, 0, 1, 0, 3.286),
    BasisFunction(0, 1, 0, 0, 0, 2.437),
    BasisFunction(0, 0, 2, 0, 0, 1.97),
    BasisFunction(0, 0, 0, 2, 0, 1.74),
    BasisFunction(0, 0, 1, 1, 0, 1.728),
    BasisFunction(0, 2, 0, 0, 0, 1.523),
    BasisFunction(2, 0, 1, 0, 0, 1.132),
    BasisFunction(2, 1, 0, 0, 0, 0.4533),
    BasisFunction(0, 0, 3, 0, 0, 1.267),
    BasisFunction(0, 0, 2, 1, 0, 1.203),
    BasisFunction(0, 0, 1, 2, 0, 1.119),
    BasisFunction(1, 1, 0, 0, 0, 0.2622),
)


def group_functions(frames: int) -> tuple[BasisFunction, ...]:
    """`GROUP` for groups of `frames`, 8 or 4. An orthonormal cosine over half the frames sums half as much energy, so
    means and deviations of the measured footage shrink by the root."""
    share = math.sqrt(frames / TEMPORAL)
    return tuple(f._replace(mean=f.mean * share, std=f.std * share) for f in GROUP) if frames != TEMPORAL else GROUP
