"""Metrics of the pixels alone: flicker, sharpness, saturation."""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.clip import Clip, Reading


def flicker(clip: Clip) -> Reading:
    """1 - mean absolute difference of neighbouring frames / 255: the formula of VBench's temporal
    flickering, without its static filter. A frozen clip has 1."""
    if len(clip.frames) < 2:
        return Reading(None)
    # The mean of the pairs' means equals the mean over everything: all frames have one size.
    differences = [float(np.mean(cv2.absdiff(a, b))) for a, b in zip(clip.frames[:-1], clip.frames[1:], strict=True)]
    return Reading(1.0 - float(np.mean(differences)) / 255.0)


def sharpness(clip: Clip) -> Reading:
    """Variance of the Laplacian of the luma (0..255), mean over frames. Depends on the picture size."""
    values = [float(np.var(cv2.Laplacian(_luma(f), cv2.CV_64F))) for f in clip.frames]
    return Reading(float(np.mean(values)))


def saturation(clip: Clip) -> Reading:
    """Mean HSV saturation, 0..1, over pixels and frames: rises when a reward is being hacked."""
    values = []
    for frame in clip.frames:
        high = frame.max(axis=2).astype(np.float64)
        low = frame.min(axis=2).astype(np.float64)
        values.append(float(np.mean(np.divide(high - low, high, out=np.zeros_like(high), where=high > 0))))
    return Reading(float(np.mean(values)))


def _luma(frame: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY))
