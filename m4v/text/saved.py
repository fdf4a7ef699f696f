"""Text features that PyramidFlow's own scripts saved beforehand (`.pt`, one text a file)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from m4v.core.errors import DataIntegrityError, InputError
from m4v.text.interface import TextFeatures
from m4v.weights.pickles import load_pickle

_EMBEDDING, _MASK, _POOLED = "prompt_embed", "prompt_attention_mask", "pooled_prompt_embed"


def read_saved_features(path: Path) -> TextFeatures:
    """Features of one text: a dict of `prompt_embed` (1, L, d), `prompt_attention_mask` (1, L) and
    `pooled_prompt_embed` (1, p), 128, 4096 and 768 as published (spec §6).

    The embedding is set to zero where the mask is, as every encoder here does. Raises InputError when there is
    no such file, DataIntegrityError when it holds code, other keys, or shapes that do not belong together.
    """
    if not path.is_file():
        raise InputError("no such file of saved text features", value=str(path))
    found = load_pickle(path)
    keys = (_EMBEDDING, _MASK, _POOLED)
    if not isinstance(found, dict) or any(not isinstance(found.get(key), Tensor) for key in keys):
        has = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise DataIntegrityError(f"saved text features need the tensors {', '.join(keys)}", value=has, where=str(path))
    embedding, mask, pooled = (found[key].detach() for key in keys)
    shapes = [tuple(t.shape) for t in (embedding, mask, pooled)]
    if embedding.ndim != 3 or pooled.ndim != 2 or shapes[1] != shapes[0][:2] or shapes[2][0] != shapes[0][0]:
        raise DataIntegrityError("saved text features have shapes that do not fit", value=shapes, where=str(path))
    real = mask != 0
    return TextFeatures(torch.where(real[..., None], embedding.float(), 0.0), real, pooled.float())
