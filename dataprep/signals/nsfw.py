"""Probability that a picture is not safe for work: Yahoo's open_nsfw (BSD-2), ONNX form."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dataprep.media.geometry import Frame
from dataprep.signals.onnx import infer

_RESIZED, _CROPPED = 256, 224
_MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)


def nsfw_probability(frame: Frame) -> float:
    """In [0, 1]. The picture goes through JPEG once, as the network's training pictures did."""
    edge = (_RESIZED - _CROPPED) // 2
    picture = Image.fromarray(frame).resize((_RESIZED, _RESIZED), resample=Image.Resampling.BILINEAR)
    picture = picture.crop((edge, edge, edge + _CROPPED, edge + _CROPPED))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG")
    pixels = np.asarray(Image.open(buffer), dtype=np.float32)[..., ::-1] - _MEAN_BGR
    return float(infer("open-nsfw", np.ascontiguousarray(pixels[None]))[0, 1])
