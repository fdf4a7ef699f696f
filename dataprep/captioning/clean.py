"""Captions cleaned and brought to the length that a text encoder reads. Torch-free: tokenizer files only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dataprep.sources.text import clean_caption, repairs
from m4v.core.artifacts import Artifact
from m4v.core.asset_catalog import asset_path
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError, InputError
from m4v.text.config import MiniLmConfig, TextEncoderConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_CHARS = 50_000
CUT = "cut"
_SENTENCE_END = re.compile(r"[.!?…]['\")\]”’]*(?=\s|$)|[。！？]")
_WORD = re.compile(r"\S+")
# In the layouts of imported text encoders, by kind; CLIP's stands beside T5's.
_TOKENIZERS = {
    "t5_clip": ("tokenizer_2/tokenizer.json",), "umt5": ("tokenizer/tokenizer.json", "google/umt5-xxl/tokenizer.json")
}  # fmt: skip
_MIN_SHARE = 0.5  # a sentence end earlier than this share of what fits loses too much


class Lengths(Protocol):
    """Counts a text as an encoder does, marks included. `name` says what counted (part of the artifact)."""

    name: str

    def ends(self, text: str) -> Sequence[int]:
        """Where each token ends, in characters."""

    @property
    def marks(self) -> int:
        """Tokens that the encoder adds to every text."""


class Words:
    """Runs of characters between spaces."""

    name, marks = "words", 0

    def ends(self, text: str) -> Sequence[int]:
        return [match.end() for match in _WORD.finditer(text)]


class Tokens:
    """Tokens of a tokenizer file (`tokenizer.json`)."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self.name, self._tokenizer = name, tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.marks = int(tokenizer.num_special_tokens_to_add(False))

    def ends(self, text: str) -> Sequence[int]:
        return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]


def count(text: str, lengths: Lengths) -> int:
    """Length of a text, marks included."""
    return len(lengths.ends(text)) + lengths.marks


def open_lengths(encoder: TextEncoderConfig | None, weights: Mapping[str, Artifact]) -> Lengths:
    """What counts for `encoder`; `weights` are imported ones by name, of which only the tokenizer is read.

    Imported weights without a `tokenizer.json` are counted in words. Raises InputError when files of the packaged
    encoder or the imported weights are not there, DataIntegrityError when a tokenizer file cannot be read.
    """
    if encoder is None:
        return Words()
    if isinstance(encoder, MiniLmConfig):
        return _open(asset_path("minilm/tokenizer"))
    if encoder.weights not in weights:
        raise InputError(
            "caption lengths need imported weights that are no input here", value=encoder.weights,
            where="curate.captions.text_encoder.weights",
            next_step="name them in the recipe's weights section, or set curate.captions.count to words",
        )  # fmt: skip
    artifact = weights[encoder.weights]
    found = next((name for name in _TOKENIZERS[encoder.kind] if name in artifact.names()), None)
    return Words() if found is None else _open(artifact.path(found))


def _open(path: Path) -> Tokens:
    from tokenizers import Tokenizer

    try:
        return Tokens(Tokenizer.from_file(str(path)), f"tokenizer:{digest_file(path)[:16]}")
    except Exception as error:  # the Rust library raises plain Exception
        raise DataIntegrityError(f"tokenizer cannot be read: {error}", where=path.name) from None


class Cleaned(NamedTuple):
    """`problem` is a rejection reason, None for usable text; `flags` say what was repaired, in order; `length` is that
    of the text."""

    text: str
    problem: str | None
    flags: tuple[str, ...]
    length: int


def clean(raw: str, lengths: Lengths, limit: int | None) -> Cleaned:
    """Plain text of at most `limit` tokens; equal to its input when there is nothing to repair."""
    plain = clean_caption(raw, MAX_CHARS)
    flags = repairs(raw)
    if plain.problem is not None:
        return Cleaned(plain.text, plain.problem, flags, 0)
    text, length = shorten(plain.text, lengths, limit)
    if text != plain.text or len(raw) > MAX_CHARS:
        flags = (*flags, CUT)
    return Cleaned(text, None if text else "missing_caption", flags, length)


def shorten(text: str, lengths: Lengths, limit: int | None) -> tuple[str, int]:
    """The longest beginning of at most `limit` tokens that ends with a sentence, else with a word, else anywhere, and
    its length."""
    ends = lengths.ends(text)
    if limit is None or len(ends) + lengths.marks <= limit:
        return text, len(ends) + lengths.marks
    room = limit - lengths.marks
    end = ends[room - 1] if room > 0 else 0
    while end > 0:
        kept = _ended(text, end)
        length = count(kept, lengths)
        if kept and length <= limit:  # a part may have more tokens by itself than it had in the whole
            return kept, length
        end = min(end, len(kept)) - 1
    return "", 0


def _ended(text: str, end: int) -> str:
    sentences = [match.end() for match in _SENTENCE_END.finditer(text, 0, end + 1) if match.end() <= end]
    if sentences and sentences[-1] >= _MIN_SHARE * end:
        return text[: sentences[-1]].rstrip()
    if end < len(text) and not text[end].isspace() and " " in text[:end].strip():
        end = text.rindex(" ", 0, end)
    return text[:end].rstrip(" ,;:-–—")
