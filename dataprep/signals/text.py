"""Share of a picture that overlay text covers: the PP-OCRv4 detector with DB post-processing (Liao et al., 2020).

Recognition is left out: it costs up to 32 s on a page of credits and the filter needs only the area.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dataprep.media.geometry import Frame, resize
from dataprep.signals.onnx import infer

_MIN_LONG_SIDE, _MAX_LONG_SIDE, _STRIDE = 640, 960, 32
_PIXEL_THRESHOLD, _BOX_THRESHOLD = 0.3, 0.5
_UNCLIP = 1.6  # the network is trained on shrunken boxes
_MIN_BOX_SIDE = 3
# The detector also marks large blobs (a cheetah's flank, a wheel): lines of text are long, or small.
_LINE_ASPECT, _SMALL_SHARE = 5.0, 0.08


def text_area(frame: Frame) -> float:
    """Share of the picture inside lines of text, in [0, 1]."""
    height, width = frame.shape[:2]
    scale = min(_MAX_LONG_SIDE, max(_MIN_LONG_SIDE, height, width)) / max(height, width)
    target = tuple(max(_STRIDE, round(side * scale / _STRIDE) * _STRIDE) for side in (width, height))
    picture = resize(frame, *target)[..., ::-1].astype(np.float32)  # BGR
    batch = ((picture / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    probability = infer("ppocr-det", np.ascontiguousarray(batch))[0, 0]
    return float(min(1.0, sum(_box_areas(probability)) / probability.size))


def _box_areas(probability: NDArray[np.float32]) -> list[float]:
    mask = cv2.dilate((probability > _PIXEL_THRESHOLD).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    areas = []
    for contour in contours:
        _, (width, height), _ = cv2.minAreaRect(contour)
        if min(width, height) < _MIN_BOX_SIDE or _mean_inside(probability, contour) < _BOX_THRESHOLD:
            continue
        grow = width * height * _UNCLIP / (width + height)  # area * ratio / perimeter, on both sides
        short, long = sorted((width + grow, height + grow))
        if long >= _LINE_ASPECT * short or short <= _SMALL_SHARE * min(probability.shape):
            areas.append(long * short)
    return areas


def _mean_inside(probability: NDArray[np.float32], contour: NDArray[np.int32]) -> float:
    x, y, width, height = cv2.boundingRect(contour)
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [contour - np.array([[x, y]], dtype=contour.dtype)], 1)
    return float(cv2.mean(probability[y : y + height, x : x + width], inside)[0])
