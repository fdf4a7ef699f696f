"""Captions as they are met in the wild made into plain text, and names that are safe to use."""

from __future__ import annotations

import codecs
import html
import math
import re
import unicodedata
from typing import NamedTuple

REPLACED = "�"
MAX_REPLACED_SHARE = 0.1
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN_PART = r"[A-Za-z0-9_-][A-Za-z0-9._ -]*"
_PLAIN_PATH = re.compile(rf"{_PLAIN_PART}(?:/{_PLAIN_PART})*")  # decides nearly every path of a table at once
_BAD_PARTS = frozenset(("", ".", ".."))
_DRIVE = re.compile(r"[A-Za-z]:")
_DROPPED = ("Cc", "Cf", "Cs", "Co", "Cn")


class CleanText(NamedTuple):
    """`problem` is a rejection reason, None for usable text; `changed` when more than spaces was repaired."""

    text: str
    problem: str | None
    changed: bool


def decode(data: bytes) -> str:
    """Text of a file: UTF-8 or, by its mark, UTF-16; bytes that are neither become U+FFFD, never an error."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def clean_caption(raw: str, max_chars: int) -> CleanText:
    """Unescape HTML, normalise to NFC, drop control, zero-width and bidi characters, collapse spaces, cut.

    Reasons: `missing_caption` (nothing is left), `caption_encoding` (a tenth or more did not decode).
    """
    text = html.unescape(raw) if "&" in raw else raw
    plain = " ".join(raw.split())
    text = plain if text is raw else " ".join(text.split())
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", text)
        text = " ".join("".join(c for c in text if unicodedata.category(c) not in _DROPPED).split())
    replaced = text.count(REPLACED)
    if replaced >= max(1, math.ceil(MAX_REPLACED_SHARE * len(text))):
        return CleanText(text, "caption_encoding", True)
    if replaced:
        text = " ".join(text.replace(REPLACED, " ").split())
    if len(text) > max_chars:
        text = text[: max_chars + 1].rsplit(" ", 1)[0][:max_chars].rstrip()
    return CleanText(text, None if text else "missing_caption", text != plain)


def repairs(raw: str) -> tuple[str, ...]:
    """What cleaning changes in a text besides its spaces: entities, normalised, controls, replaced:NUMBER."""
    if raw.isascii() and raw.isprintable() and "&" not in raw:
        return ()
    text = html.unescape(raw)
    flags = ["entities"] if text != raw else []
    if not unicodedata.is_normalized("NFC", text):
        flags.append("normalised")
    if any(unicodedata.category(c) in _DROPPED and not c.isspace() for c in text):
        flags.append("controls")
    if replaced := text.count(REPLACED):
        flags.append(f"replaced:{replaced}")
    return tuple(flags)


def path_problem(path: str) -> str | None:
    """Why a relative path must not be used, None when it is fine. Dashes, dots, spaces and emoji are fine."""
    if _PLAIN_PATH.fullmatch(path):
        return None
    if not path:
        return "empty name"
    if _CONTROLS.search(path):
        return "control characters or bytes that are not UTF-8"
    if "\\" in path or path.startswith("/") or _DRIVE.match(path):
        return "not a relative path with forward slashes"
    if not _BAD_PARTS.isdisjoint(path.split("/")):
        return "leaves the collection or has empty parts"
    return None


def printable(name: str) -> str:
    """A name as it can stand in a table: bytes that are no text are shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
