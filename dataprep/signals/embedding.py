"""What a clip shows, as a direction: ImageNet features of its key frames, for semantic dedup."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataprep.dedup.semantic import quantised
from dataprep.media.geometry import Frame
from m4v.core.asset_catalog import asset_path
from m4v.core.rng import generator
from m4v.scores.conse import preprocess
from m4v.scores.efficientnet import EfficientNetLite2, load_efficientnet_lite2

COMPONENTS = 256  # kept of 1,280 by a random projection, which moves a small cosine distance by about a tenth of it


def embedding(pictures: list[Frame]) -> bytes:
    """(COMPONENTS,) int8 bytes of the mean direction of pooled EfficientNet-Lite2 features of RGB pictures."""
    with torch.inference_mode():
        found = [_features(picture) for picture in pictures]
        mean = torch.stack(found).mean(0).double().numpy()
    return quantised((mean @ _projection())[None]).tobytes()


def _features(picture: Frame) -> Tensor:
    frames = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
    found: Tensor = F.normalize(_network().features(preprocess(frames, "whole")), dim=-1)[0]
    return found


@cache
def _network() -> EfficientNetLite2:
    return load_efficientnet_lite2(asset_path("efficientnet-lite2"))


@cache
def _projection() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return generator(0, "embedding", "projection").standard_normal((1280, COMPONENTS))
