"""T5 v1.1 and CLIP's text tower as one text encoder, through transformers, from imported weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.devices import DTYPES
from m4v.text.config import T5ClipConfig
from m4v.text.interface import TextFeatures
from m4v.text.remembering import RememberingEncoder
from m4v.weights.record import read_record

ALGORITHM = 1  # raise it when the same weights come to mean other features
CACHED_TEXTS = 32  # 2 MiB each at the published sizes
_FORMAT = "t5_clip"
_CLIP, _T5, _CLIP_TOKENS, _T5_TOKENS = "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"


@dataclass(frozen=True)
class Networks:
    """The two models and their tokenizers, of classes of transformers."""

    t5: Any
    clip: Any
    t5_tokens: Any
    clip_tokens: Any


class T5Clip(RememberingEncoder):
    """`TextEncoder`. Embedding: T5's last hidden states of `slots` tokens; pooled: CLIP's pooler output.

    Each text goes through the networks alone and padded to its full slots, so that the texts beside it cannot
    change its features; T5 gets the padding mask, CLIP needs none (it is causal and reads its first end token).
    Nothing is added to or taken from a text: prompt suffixes are the sampler's.
    """

    def __init__(self, config: T5ClipConfig, networks: Networks, weights: Mapping[str, str], device: str) -> None:
        super().__init__(CACHED_TEXTS)
        self._config, self._networks = config, networks
        self._weights, self._device = dict(weights), torch.device(device)

    @property
    def digest(self) -> str:
        """Not over the name that a recipe gives its weights. The kind of device counts: its kernels round in
        their own way."""
        config = {key: value for key, value in self._config.canonical().items() if key != "weights"}
        facts = {"config": config, "algorithm": ALGORITHM, "weights": self._weights, "device": self._device.type}
        return digest_json(facts)

    def _compute(self, text: str) -> TextFeatures:
        ids, mask = self._tokens(self._networks.t5_tokens, text, self._config.slots)
        hidden = self._networks.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        clip_ids, _ = self._tokens(self._networks.clip_tokens, text, self._config.clip_slots)
        pooled = self._networks.clip(input_ids=clip_ids).pooler_output
        real = mask.bool()
        embedding = torch.where(real[..., None], hidden.float(), 0.0)
        return TextFeatures(embedding.cpu(), real.cpu(), pooled.float().cpu())

    def _tokens(self, tokenizer: Any, text: str, slots: int) -> tuple[Tensor, Tensor]:
        """Ids and mask (1, slots); the end token stays when a text is cut."""
        found = tokenizer(text, padding="max_length", max_length=slots, truncation=True, return_tensors="pt")
        return found.input_ids.to(self._device), found.attention_mask.to(self._device)


def open_t5_clip(config: T5ClipConfig, folders: Mapping[str, Path], device: str = "cpu") -> T5Clip:
    """The encoder from the `weights` artifact folder `folders[config.weights]`.

    Raises InputError when there is none or it is of another format, ConfigError when the config states other
    sizes than the models have, DataIntegrityError when files are damaged.
    """
    if config.weights not in folders:
        raise InputError(
            "text encoder needs imported weights that are not here", value=config.weights, where="text_encoder.weights",
            next_step=f"name them in the recipe's weights section, or run `m4v weights import {config.weights}`",
        )  # fmt: skip
    folder = folders[config.weights]
    record = read_record(folder)
    if record.format != _FORMAT:
        raise InputError(
            f"imported weights are no text encoder but {record.entry}", value=config.weights,
            where="text_encoder.weights", next_step="import the entry pyramidflow-text",
        )  # fmt: skip
    networks = _open_networks(folder, DTYPES[config.dtype], device)
    _check_sizes(config, networks)
    return T5Clip(config, networks, {file.path: file.sha256 for file in record.source}, device)


def _open_networks(folder: Path, dtype: torch.dtype, device: str) -> Networks:
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    return Networks(
        t5=_open_model(T5EncoderModel, folder / _T5, dtype, device),
        clip=_open_model(CLIPTextModel, folder / _CLIP, dtype, device),
        t5_tokens=_open_tokens(T5Tokenizer, folder / _T5_TOKENS),
        clip_tokens=_open_tokens(CLIPTokenizer, folder / _CLIP_TOKENS),
    )


def _open_model(model_class: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    try:
        model, loaded = model_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the library raises what its parts raise: OSError, ValueError, SafetensorError, …
        raise _unreadable(folder, error) from error
    # The library would start these at random and only warn.
    if lacking := sorted(loaded["missing_keys"]) + sorted(str(key) for key in loaded["mismatched_keys"]):
        raise DataIntegrityError("model lacks tensors", value=lacking[:5], where=str(folder))
    return model.eval().requires_grad_(False).to(device)


def _open_tokens(tokenizer_class: Any, folder: Path) -> Any:
    try:
        return tokenizer_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> DataIntegrityError:
    reason = (str(error).strip().splitlines() or [""])[0]
    return DataIntegrityError(
        f"text encoder cannot be read: {type(error).__name__}: {reason}", where=str(folder),
        next_step="m4v artifacts verify, or import the weights again",
    )  # fmt: skip


def _check_sizes(config: T5ClipConfig, networks: Networks) -> None:
    t5, clip = networks.t5.config, networks.clip.config
    for key, has, needs in (
        ("embedding_dim", config.embedding_dim, t5.d_model),
        ("pooled_dim", config.pooled_dim, clip.hidden_size),
    ):
        if has != needs:
            raise ConfigError(
                f"text_encoder.{key} is not that of the imported weights", value=has, where=config.weights,
                next_step=f"set text_encoder.{key} to {needs}",
            )  # fmt: skip
    if config.clip_slots > clip.max_position_embeddings:
        raise ConfigError(
            f"CLIP has {clip.max_position_embeddings} positions", value=config.clip_slots,
            where="text_encoder.clip_slots", next_step=f"set it to {clip.max_position_embeddings}",
        )  # fmt: skip
