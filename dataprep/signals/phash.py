"""A 64-bit perceptual hash: signs of the lowest frequencies of a 32x32 picture against their median."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 32
BITS = 64
_FLAT_SPREAD = 6.0  # pictures with less contrast hash to noise
# The 64 lowest frequencies by their sum, the mean (0, 0) left out.
_FREQUENCIES = sorted(((u, v) for u in range(16) for v in range(16) if u + v > 0), key=lambda f: (sum(f), f))[:BITS]
_ROWS, _COLUMNS = (np.array(axis) for axis in zip(*_FREQUENCIES, strict=True))
_WEIGHTS = np.uint64(1) << np.arange(BITS, dtype=np.uint64)


def perceptual_hash(grey: NDArray[np.uint8]) -> int:
    """Hash of a grey picture; 0 stands for one without structure, and matches nothing."""
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if float(small.std()) < _FLAT_SPREAD:
        return 0
    low = cv2.dct(small)[_ROWS, _COLUMNS]
    return int(_WEIGHTS[low > np.median(low)].sum(dtype=np.uint64))


def distance(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of differing bits, element by element."""
    return np.asarray(np.bitwise_count(left ^ right))


def as_text(hashes: NDArray[np.uint64]) -> str:
    """Hashes of a clip's sampled frames as hex words joined by dashes."""
    return "-".join(f"{int(h):016x}" for h in hashes)


def from_text(text: str) -> NDArray[np.uint64]:
    return np.array([int(word, 16) for word in text.split("-") if word], dtype=np.uint64)
