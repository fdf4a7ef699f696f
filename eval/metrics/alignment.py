"""`conse.alignment`: how well frames and prompt agree by ConSE (EfficientNet-Lite2 + MiniLM, no training).

A real but coarse signal, for things ImageNet has words for; never to be read as a CLIP score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.clip import Clip, Reading, evenly
from m4v.scores.config import ConseConfig

if TYPE_CHECKING:
    from m4v.scores.conse import Conse


class Alignment:
    """Mean cosine of evenly spaced frames and the prompt: about .39 for right pairs of photos, .00 for wrong
    ones. Loads the packaged models at its first clip; raises InputError when they are not fetched."""

    def __init__(self, config: ConseConfig, frames_per_clip: int) -> None:
        self._config, self._frames_per_clip = config, frames_per_clip
        self._conse: Conse | None = None

    def __call__(self, clip: Clip) -> Reading:
        import torch

        conse = self._loaded()
        chosen = np.ascontiguousarray(clip.frames[evenly(len(clip.frames), self._frames_per_clip)])
        # One thread: a second one could sum in another order and change a digit.
        torch.set_num_threads(1)
        images = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 255.0
        with torch.no_grad():
            text = conse.text_features([clip.prompt]).expand(len(images), -1)
            scores = conse.score(images, text)
        return Reading(float(scores.double().mean()))

    def _loaded(self) -> Conse:
        if self._conse is None:
            from m4v.scores.conse import open_conse

            self._conse = open_conse(self._config)
        return self._conse
