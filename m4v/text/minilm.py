"""all-MiniLM-L6-v2 as a text encoder: last hidden states of each token and the mean-pooled sentence vector."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.core.asset_catalog import asset_path
from m4v.core.canonical import digest_json
from m4v.text.bert import Bert, load_bert
from m4v.text.config import MiniLmConfig
from m4v.text.interface import TextFeatures
from m4v.text.remembering import RememberingEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ALGORITHM = 1  # raise it when the same weights come to mean other features
CACHED_TEXTS = 4096


class MiniLm(RememberingEncoder):
    """`TextEncoder`. Each text goes through the network alone, unpadded and on one thread, so neither its
    neighbours nor the machine's cores can change its bits; a text seen before is remembered.

    `pooled` is the sentence vector of the published model (mean over tokens, unit length) times sqrt(d), which
    gives it the size of the token vectors.
    """

    def __init__(self, config: MiniLmConfig, model: Bert, tokenizer: Tokenizer) -> None:
        super().__init__(CACHED_TEXTS)
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.slots)

    @cached_property
    def digest(self) -> str:
        return digest_json(
            {"config": self._config.canonical(), "algorithm": ALGORITHM, "weights": self._config.weights()}
        )

    def _compute(self, text: str) -> TextFeatures:
        ids: Tensor = torch.tensor([self._tokenizer.encode(text).ids])
        hidden = self._model(ids)
        length, width = hidden.shape[1:]
        pooled = F.normalize(hidden.mean(1), dim=-1) * width**0.5
        embedding = F.pad(hidden, (0, 0, 0, self._config.slots - length))
        mask = torch.arange(self._config.slots)[None] < length
        return TextFeatures(embedding, mask, pooled)


def open_minilm(config: MiniLmConfig) -> MiniLm:
    """Raises InputError when the files have not been fetched."""
    from tokenizers import Tokenizer

    model = load_bert(asset_path("minilm/config"), asset_path("minilm"))
    return MiniLm(config, model, Tokenizer.from_file(str(asset_path("minilm/tokenizer"))))
