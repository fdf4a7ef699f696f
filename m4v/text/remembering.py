"""What the encoders have in common: one text at a time, on one thread, and the last ones remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

import torch

from m4v.text.interface import TextFeatures
from m4v.text.threads import one_thread


class RememberingEncoder(ABC):
    """`encode` of a `TextEncoder` over `_compute`. A text goes through the network alone, so that neither the texts
    beside it nor the machine's cores can change its bits."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._known: OrderedDict[str, TextFeatures] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        if not texts:
            raise ValueError("no text to encode")
        with one_thread(), torch.no_grad():
            return TextFeatures.cat([self._one(text) for text in texts])

    @abstractmethod
    def _compute(self, text: str) -> TextFeatures:
        """Features of one text, on the CPU."""

    def _one(self, text: str) -> TextFeatures:
        known = self._known.pop(text, None) or self._compute(text)
        self._known[text] = known
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)
        return known
