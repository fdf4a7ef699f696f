"""CLIP's byte-pair tokens, from the merges that OpenAI published (`bpe_simple_vocab_16e6.txt.gz`)."""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m4v.core.errors import DataIntegrityError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MERGES = 49152 - 256 - 2
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_END_OF_WORD = "</w>"


class ClipTokens:
    """Texts to ids (n, context): start, tokens, end, zeros. A longer text keeps its first tokens and an end."""

    def __init__(self, merges: Path, context: int = 77) -> None:
        self._merges, self._context = merges, context

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Text is mended (curly quotes and the like), entities are resolved, white space becomes one blank and letters
        small, as CLIP was trained."""
        ids = torch.zeros(len(texts), self._context, dtype=torch.int64)
        for row, text in enumerate(texts):
            found = [self.start, *self.words(text)[: self._context - 2], self.end]
            ids[row, : len(found)] = torch.tensor(found)
        return ids

    def words(self, text: str) -> list[int]:
        """Ids of a text's tokens, all of them, without start and end."""
        import ftfy

        clean = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return list(self._tokenizer.encode(clean, add_special_tokens=False).ids)

    @property
    def start(self) -> int:
        return 2 * 256 + _MERGES

    @property
    def end(self) -> int:
        return self.start + 1

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        merges = self._read()
        letters = list(_byte_letters().values())
        names = [*letters, *(letter + _END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
        # Merges may give a string twice: CLIP's later row has its id.
        vocabulary = {name: number for number, name in enumerate(names)}
        made = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD))
        made.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return made

    def _read(self) -> list[tuple[str, str]]:
        try:
            lines = gzip.decompress(self._merges.read_bytes()).decode().split("\n")[1 : _MERGES + 1]
            merges = [(left, right) for left, right in (line.split() for line in lines)]
        except (OSError, EOFError, ValueError) as error:
            raise DataIntegrityError(f"CLIP's merges cannot be read: {error}", where=str(self._merges)) from None
        if len(merges) != _MERGES:
            raise DataIntegrityError("CLIP's merges are not whole", value=len(merges), where=str(self._merges))
        return merges


def _byte_letters() -> dict[int, str]:
    """A printable letter for every byte, in CLIP's order: printable bytes first, then the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
