"""Which clips a question is about: by id, source, URL or hash.

selector = parse_selector(["3fa9c2d0", "webvid/page/123", "https://…", "sha256:…"])
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Self

from pydantic import Field, field_validator, model_validator

from m4v.core.config import FrozenModel
from m4v.core.errors import InputError

CLIP_DIGITS, DIGEST_DIGITS, WORD_DIGITS = 32, 64, 16
MIN_PREFIX = 6  # hex digits of a clip id that are taken for one without `clip:`
DEFAULT_PHASH_BITS = 8
_HEX = re.compile(r"[0-9a-f]+")
_WORDS = re.compile(rf"[0-9a-f]{{{WORD_DIGITS}}}(-[0-9a-f]{{{WORD_DIGITS}}})*")
_KINDS = {"clip": "clips", "source": "sources", "url": "urls", "sha256": "digests", "phash": "phashes"}


class ClipSelector(FrozenModel):
    """Clips that any term names, and with each those that overlap its span of the same source file.

    `clips`: ids or unique prefixes. `sources`: `SOURCE`, or `SOURCE/SOURCE_ID` for one file. `urls`: where the
    listing of a source says that a file came from. `digests`: sha256 of a source file. `phashes`: perceptual hash
    words joined by dashes; a clip matches when at least half of the words (those that are not 0) are within
    `phash_bits` bits of one of its own.
    """

    clips: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    phashes: tuple[str, ...] = ()
    phash_bits: int = Field(DEFAULT_PHASH_BITS, ge=0, le=16)

    @field_validator("clips", "sources", "urls", "digests", "phashes")
    @classmethod
    def _each_once(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        if not all(terms):
            raise ValueError("a term is empty")
        return tuple(sorted(set(terms)))

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if not self.terms():
            raise ValueError("names no clip")
        for name, terms, fits in (
            ("clip id", self.clips, lambda t: _HEX.fullmatch(t) and len(t) <= CLIP_DIGITS),
            ("sha256", self.digests, lambda t: _HEX.fullmatch(t) and len(t) == DIGEST_DIGITS),
            ("perceptual hash", self.phashes, _WORDS.fullmatch),
        ):
            if wrong := [t for t in terms if not fits(t)]:
                raise ValueError(f"{name} is not of lower-case hex digits as it should be: {wrong[0]!r}")
        return self

    def terms(self) -> list[str]:
        """Every term as `kind:value`, which `parse_selector` reads back."""
        return [f"{kind}:{value}" for kind, name in _KINDS.items() for value in getattr(self, name)]


def parse_selector(terms: Iterable[str], *, phash_bits: int = DEFAULT_PHASH_BITS) -> ClipSelector:
    """Tell CLIP, SOURCE, URL and HASH apart; `clip:`, `source:`, `url:`, `sha256:` and `phash:` decide outright.

    Without them: `…://…` is a URL, 64 hex digits the sha256 of a file, words of 16 joined by dashes a perceptual
    hash, 6 to 32 hex digits a clip id or its beginning, anything else a source. Raises InputError otherwise.
    """
    found: dict[str, list[str]] = {name: [] for name in _KINDS.values()}
    for term in terms:
        kind, value = _told_apart(term.strip())
        found[_KINDS[kind]].append(value)
    try:
        return ClipSelector(**{name: tuple(values) for name, values in found.items()}, phash_bits=phash_bits)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(
            f"clips cannot be selected so: {_first(error)}",
            value=" ".join(t for values in found.values() for t in values),
            next_step="CLIP, SOURCE, SOURCE/SOURCE_ID, URL, sha256:HEX or phash:WORD-WORD…",
        ) from None


def _told_apart(term: str) -> tuple[str, str]:
    kind, separator, value = term.partition(":")
    if separator and kind in _KINDS and not value.startswith("//"):
        return kind, value.strip() if kind in ("source", "url") else value.strip().lower()
    if "://" in term:
        return "url", term
    hexed = term.lower()
    if _HEX.fullmatch(hexed) and len(hexed) == DIGEST_DIGITS:
        return "sha256", hexed
    if "-" in hexed and _WORDS.fullmatch(hexed):
        return "phash", hexed
    if _HEX.fullmatch(hexed) and MIN_PREFIX <= len(hexed) <= CLIP_DIGITS:
        return "clip", hexed
    return "source", term


def _first(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)
