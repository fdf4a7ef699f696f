"""UMT5, Wan's text encoder, through transformers, from a local folder alone."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m4v.core.canonical import digest_file, digest_json
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.devices import DTYPES
from m4v.text.config import Umt5Config
from m4v.text.interface import TextFeatures
from m4v.text.remembering import RememberingEncoder

ALGORITHM = 1  # raise it when the same weights come to mean other features
CACHED_TEXTS = 8  # 8 MiB each at the published sizes
SLOTS = 512  # what Wan was trained with
_MODEL, _TOKENS = "text_encoder", ("tokenizer", "google/umt5-xxl")


class Umt5(RememberingEncoder):
    """`TextEncoder`. Embedding: UMT5's last hidden states of `slots` tokens, zero at pads; `pooled` has no columns.

    The empty string gives the null text of classifier-free guidance.
    """

    def __init__(self, folder: Path, model: Any, tokenizer: Any, slots: int) -> None:
        super().__init__(CACHED_TEXTS)
        self._folder, self._model, self._tokenizer, self._slots = folder, model, tokenizer, slots

    @cached_property
    def digest(self) -> str:
        """Reads every file of the encoder once."""
        files = sorted(path for path in self._folder.rglob("*") if path.is_file() and _is_part(path, self._folder))
        sums = {str(path.relative_to(self._folder)): digest_file(path) for path in files}
        identity = {"kind": "umt5", "algorithm": ALGORITHM, "slots": self._slots, "dtype": str(self._model.dtype)}
        return digest_json({**identity, "weights": sums})

    @property
    def width(self) -> int:
        """Channels of the embedding."""
        return int(self._model.config.d_model)

    def _compute(self, text: str) -> TextFeatures:
        found = self._tokenizer(
            cleaned(text), padding="max_length", max_length=self._slots, truncation=True, return_tensors="pt"
        )
        ids, mask = (u.to(self._model.device) for u in (found.input_ids, found.attention_mask))
        hidden: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask.bool()
        embedding = torch.where(real[..., None], hidden.float(), 0.0)
        return TextFeatures(embedding.cpu(), real.cpu(), torch.zeros(1, 0))


def cleaned(text: str) -> str:
    """The prompt as Wan's own code hands it on: entities of HTML resolved, white space collapsed.

    Wan also repairs wrongly decoded characters with a library that is not used here.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def open_umt5(folder: Path, slots: int = SLOTS, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Umt5:
    """The encoder of a folder with `text_encoder` and `tokenizer`, as diffusers' Wan folders have them; the
    tokenizer may also be where Wan itself publishes it (`google/umt5-xxl`).

    Raises InputError when either is not there, DataIntegrityError when files are damaged or lack tensors.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel
    from transformers.utils import logging

    tokens = next((folder / name for name in _TOKENS if (folder / name).is_dir()), None)
    if tokens is None or not (folder / _MODEL / "config.json").is_file():
        needs = f"{_MODEL} with a config.json, and {_TOKENS[0]}"
        raise InputError("folder has no UMT5 text encoder", value=str(folder), next_step=f"it needs {needs}")
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
        model, report = UMT5EncoderModel.from_pretrained(
            folder / _MODEL, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the library raises what its parts raise: OSError, ValueError, SafetensorError, …
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataIntegrityError(
            f"text encoder cannot be read: {type(error).__name__}: {reason}", where=str(folder)
        ) from error
    # The library would start these at random and only warn.
    if lacking := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise DataIntegrityError("text encoder lacks tensors", value=lacking[:5], where=str(folder / _MODEL))
    return Umt5(folder, model.eval().requires_grad_(False).to(device), tokenizer, slots)


def _is_part(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).as_posix().startswith((f"{_MODEL}/", *(f"{name}/" for name in _TOKENS)))


def open_umt5_encoder(config: Umt5Config, folders: Mapping[str, Path], device: str = "cpu") -> Umt5:
    """The encoder of an encode stage or a checkpoint from the imported weights `folders[config.weights]`.

    Raises InputError when they are not there or hold no UMT5, ConfigError when the model has another width than the
    config states, DataIntegrityError when files are damaged.
    """
    if config.weights not in folders:
        raise InputError(
            "text encoder needs imported weights that are not here", value=config.weights, where="text_encoder.weights",
            next_step=f"name them in the recipe's weights section, or run `m4v weights import {config.weights}`",
        )  # fmt: skip
    encoder = open_umt5(folders[config.weights], config.slots, DTYPES[config.dtype], device)
    if encoder.width != config.embedding_dim:
        raise ConfigError(
            f"the imported text encoder gives {encoder.width} channels", value=config.embedding_dim,
            where="text_encoder.embedding_dim", next_step=f"set it to {encoder.width}",
        )  # fmt: skip
    return encoder
