"""FastVideo's folders of `torch.save` files: `latent/`, `prompt_embed/`, `prompt_attention_mask/`, listed by
`videos2caption.json`, a JSON array of `latent_path`, `prompt_embed_path`, `prompt_attention_mask`, `caption`, `length`.

`length` counts latent frames; `path`, where a row has one, is of its media. Where `pooled_prompt_embed/` stands beside
them (`pooled_prompt_embed_path`), features are whole and can be taken over; else the captions are encoded anew.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from dataprep.encode.saved_latents import (
    STEP,
    Precomputed,
    Row,
    checked_features,
    latent_reader,
    load_tensor_file,
    local_file,
)
from dataprep.import_config import ImportConfig
from dataprep.quarantine import ItemError, QuarantineRow
from dataprep.sources.json_stream import read_json_array
from dataprep.sources.listing import Rejected
from dataprep.sources.text import clean_caption, path_problem, printable
from m4v.core.storage import Storage
from m4v.text.interface import TextFeatures

_LATENT = ("latent_path", "latent")
# Key of a row and folder of its file, of embedding, mask and pooled vector.
_TEXT = (
    ("prompt_embed_path", "prompt_embed"),
    ("prompt_attention_mask", "prompt_attention_mask"),
    ("pooled_prompt_embed_path", "pooled_prompt_embed"),
)
_RANKS = {"prompt_embed": 2, "prompt_attention_mask": 1, "pooled_prompt_embed": 1}


def folder_rows(table: str, location: Storage, config: ImportConfig) -> Iterator[Row]:
    """A row for each latent of a `videos2caption.json`, whose folders stand beside it; other captions of the same
    latent join it."""
    found: dict[str, Precomputed] = {}
    with location.open(table) as stream:
        for item in read_json_array(stream, table):
            if isinstance(item, Rejected):
                yield QuarantineRow(config.name, "", item.path, item.reason, item.detail, STEP)
                continue
            place = f"{table} row {item.row}"
            try:
                latent, row, caption, text = _row(item.fields, place, posixpath.dirname(table), location, config)
            except ItemError as error:
                name = printable(str(item.fields.get(_LATENT[0]) or place))
                yield QuarantineRow(config.name, name, name, error.reason, f"{place}: {error.detail}", STEP)
                continue
            found.setdefault(latent, row).add(caption, text)
    yield from found.values()


def _row(
    fields: Mapping[str, object], place: str, base: str, location: Storage, config: ImportConfig
) -> tuple[str, Precomputed, str, Callable[[], TextFeatures] | None]:
    """Place of a row's latent, the row without its caption, the caption, a reader of its features where they are taken
    over."""
    latent = _path(fields, *_LATENT, base)
    if latent is None:
        raise ItemError("missing_latent", "the row names no latent_path")
    said = fields.get("caption")
    captions = [c for c in said if isinstance(c, str)] if isinstance(said, list) else [said]
    clean = clean_caption(str(captions[0]) if captions and captions[0] else "", config.max_caption_chars)
    if clean.problem is not None:
        raise ItemError(clean.problem, "caption")
    length = fields.get("length")
    read = latent_reader(location, latent, config.codec)
    rate = fields.get("fps")
    media = _path(fields, "path", "", base)
    row = Precomputed(
        media or latent, place, lambda: _of_length(read(), length, place), [],
        fps=float(rate) if isinstance(rate, int | float) and 0 < rate <= 240 else None, names_media=media is not None,
    )  # fmt: skip
    return latent, row, clean.text, _features(fields, base, location) if config.texts == "reuse" else None


def _path(fields: Mapping[str, object], key: str, folder: str, base: str) -> str | None:
    """Place of a row's file in the collection; raises ItemError `unsafe_name` when it is outside of it."""
    name = fields.get(key)
    if not isinstance(name, str) or not name:
        return None
    if problem := path_problem(name):
        raise ItemError("unsafe_name", problem)
    inside = name if not folder or name.startswith(f"{folder}/") else f"{folder}/{name}"
    return posixpath.normpath(posixpath.join(base, inside))


def _of_length(latent: Tensor, length: object, place: str) -> Tensor:
    if isinstance(length, int) and length > 0 and length != latent.shape[1]:
        raise ItemError("bad_latent", f"{place}: {latent.shape[1]} latent frames, the row says {length}")
    return latent


def _features(fields: Mapping[str, object], base: str, location: Storage) -> Callable[[], TextFeatures]:
    """Raises ItemError `missing_text` for a row that does not name all three files."""
    paths = {folder: _path(fields, key, folder, base) for key, folder in _TEXT}
    named = {folder: path for folder, path in paths.items() if path is not None}
    if missing := [folder for folder in paths if folder not in named]:
        raise ItemError("missing_text", f"the row names no {missing[0]}; texts=encode makes features anew")

    def read() -> TextFeatures:
        parts = {folder: _tensor(location, path, _RANKS[folder]) for folder, path in named.items()}
        return checked_features(*parts.values(), where=named["prompt_embed"])

    return read


def _tensor(location: Storage, path: str, rank: int) -> Tensor:
    """A tensor with a leading axis of one, which the file may lack."""
    with local_file(location, path) as local:
        found = load_tensor_file(local, path, "bad_text")
        if not isinstance(found, Tensor) or found.layout != torch.strided or found.ndim not in (rank, rank + 1):
            raise ItemError("bad_text", f"{path}: {type(found).__name__}, not a tensor of {rank} axes")
        return (found if found.ndim == rank + 1 else found[None]).clone()
