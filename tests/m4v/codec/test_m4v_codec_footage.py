"""The codec on real footage: what its tables promise."""

import av
import cv2
import numpy as np
import pytest
import torch

from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.core.asset_catalog import asset_path
from m4v.flow.latents import normalise


def _cover(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    y, x = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    return cv2.resize(picture[y : y + rows, x : x + columns], (width, height), interpolation=cv2.INTER_AREA)


def _video(name: str, first: int, frames: int) -> np.ndarray:
    pictures = []
    with av.open(str(asset_path(name))) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= first:
                pictures.append(_cover(frame.to_ndarray(format="rgb24"), 128, 192))
            if len(pictures) == frames:
                return np.stack(pictures)
    raise AssertionError(f"{name} has no frame {first + frames}")


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


# Measured; (first frame, groups) in dB at 128x192. A fall of more than half a dB is a worse codec.
GOLDEN = {
    ("corpus/street/bikes.mp4", 76): (32.3, 23.8),
    ("corpus/street/carphone_pristine.mp4", 0): (30.5, 27.5),
    ("corpus/excerpt/bigbuckbunny.mp4", 0): (27.9, 25.5),
}


@pytest.mark.parametrize(("name", "first"), GOLDEN)
def test_footage_is_recognisable(name, first):
    clip = _video(name, first, 33)
    codec = open_codec(DctCodecConfig())
    decoded = codec.decode(codec.encode(clip))
    measured = _psnr(clip[:1], decoded[:1]), _psnr(clip[1:], decoded[1:])
    assert measured == pytest.approx(GOLDEN[name, first], abs=0.5)


def test_latents_of_footage_are_about_unit_normal_after_normalisation():
    """Over kinds of footage together: single shots differ, as their brightness does."""
    codec = open_codec(DctCodecConfig())
    clips = [_video(name, first, 33) for name, first in GOLDEN]
    latents = torch.cat([normalise(torch.from_numpy(codec.encode(c))[None]) for c in clips])
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        means, deviations = part.mean((0, 2, 3, 4)), part.std((0, 2, 3, 4))
        assert float(means.abs().max()) < 0.8
        assert 0.4 < float(deviations.min()) < float(deviations.max()) < 2.0
        assert float(deviations.mean()) == pytest.approx(1, abs=0.3)
