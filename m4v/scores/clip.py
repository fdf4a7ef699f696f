"""HPSv2 and CLIP as differentiable scores: cosine of a frame's and a caption's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.core.asset_catalog import asset_path
from m4v.core.canonical import digest_json
from m4v.core.errors import InputError
from m4v.devices import DTYPES
from m4v.scores.clip_config import TOWERS, VOCABULARY, ClipConfig, ClipPreprocessing, ClipTowers, HpsConfig
from m4v.scores.clip_tokens import ClipTokens
from m4v.scores.clip_towers import text_tower, vision_tower
from m4v.scores.resizing import resize
from m4v.scores.self_test import self_test
from m4v.weights.record import read_record

_MODEL = "model.safetensors"  # what `m4v weights import` makes of a state dict
ALGORITHM = 1  # raise it when the same weights come to mean other scores
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(frames: Tensor, side: int, how: ClipPreprocessing) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 3, side, side), normalised. Bicubic with anti-aliasing; black is
    filled in before normalising, so that it is `-mean / std` (as HPSv2 does)."""
    height, width = frames.shape[-2:]
    if how == "squash":
        size = (side, side)
    else:
        scale = side / (max(height, width) if how == "pad" else min(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = frames if size == (height, width) else resize(frames, size, "bicubic")
    if how == "crop":
        top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
        pixels = pixels[..., top : top + side, left : left + side]
    elif how == "pad":
        down, across = side - size[0], side - size[1]
        pixels = F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
    mean, std = (torch.tensor(values).to(pixels)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


class ClipScore:
    """`Scorer`. Only the vision tower is on the device; captions go through the text tower on the CPU, once each."""

    def __init__(
        self,
        config: HpsConfig | ClipConfig,
        towers: ClipTowers,
        vision: nn.Module,
        text: nn.Module,
        tokens: ClipTokens,
        weights: Mapping[str, str],
    ) -> None:
        self._config, self._towers = config, towers
        self._vision, self._text, self._tokens = vision, text, tokens
        self._weights = dict(weights)

    @property
    def name(self) -> str:
        return self._config.kind

    @cached_property
    def digest(self) -> str:
        """Not over the name that a recipe gives its weights, nor over where activations are kept."""
        config = {k: v for k, v in self._config.canonical().items() if k not in ("weights", "checkpointing")}
        files = {**self._weights, **self._config.packaged()}
        return digest_json({"config": config, "algorithm": ALGORITHM, "weights": files})

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(n, embed_dim), unit length, float32. A text goes alone, so that others cannot change it; one of more
        than the context's tokens is cut (`tokens_cut` counts what it loses)."""
        found = [self._text(input_ids=self._tokens([text])).text_embeds for text in texts]
        return F.normalize(torch.cat(found).float(), dim=-1)

    def tokens_cut(self, text: str) -> int:
        """Tokens of `text` that the score does not read."""
        return max(0, len(self._tokens.words(text)) - (self._towers.context - 2))

    def image_features(self, frames: Tensor) -> Tensor:
        """(B, embed_dim), unit length, float32, of frames (B, 3, H, W) in [0, 1]."""
        pixels = preprocess(frames.float(), self._towers.image_side, self._config.preprocessing)
        found: Tensor = self._vision(pixel_values=pixels.to(DTYPES[self._config.dtype])).image_embeds
        return F.normalize(found.float(), dim=-1)

    def compare(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosines (B,) fp32 of unit vectors (B, embed_dim)."""
        return (image_features * text_features.to(image_features.device).float()).sum(-1)

    def score(self, frames: Tensor, text_features: Tensor) -> Tensor:
        """Cosines (B,) fp32 of frames (B, 3, H, W) in [0, 1] with rows of `text_features` (B, embed_dim).

        Raises ValueError when the two batches differ.
        """
        if len(frames) != len(text_features):
            raise ValueError(f"{len(frames)} frames cannot be scored against {len(text_features)} texts")
        return self.compare(self.image_features(frames), text_features)


def open_clip_score(
    config: HpsConfig | ClipConfig, folders: Mapping[str, Path], device: torch.device | str = "cpu"
) -> ClipScore:
    """A score that passed its self-test, from the `weights` artifact folder `folders[config.weights]`.

    Raises InputError when there is none, ConfigError or DataIntegrityError when it does not fit.
    """
    if config.weights not in folders:
        raise InputError(
            f"score {config.kind} needs imported weights that are not here", value=config.weights,
            where="scorer.weights",
            next_step=f"name them in the recipe's weights section, or run `m4v weights import {config.weights}`",
        )  # fmt: skip
    folder = folders[config.weights]
    towers = config.towers if isinstance(config.towers, ClipTowers) else TOWERS[config.towers]
    dtype = DTYPES[config.dtype]
    tokens = ClipTokens(asset_path(VOCABULARY), towers.context)
    vision = vision_tower(towers, folder / _MODEL, dtype, checkpointing=config.checkpointing).to(device)
    text = text_tower(towers, folder / _MODEL, dtype, tokens.end)
    record = read_record(folder)
    made = ClipScore(config, towers, vision, text, tokens, {file.path: file.sha256 for file in record.source})
    self_test(made, device, tolerance=1e-4 if config.dtype == "float32" else 1e-2)
    return made
