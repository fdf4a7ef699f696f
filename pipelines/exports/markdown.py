"""Markdown from facts: tables and lists whose cells cannot break them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ESCAPED = "\\`*_{}[]<>|#"


def text(value: object) -> str:
    """A value as plain text in one line, with Markdown's characters made harmless."""
    shown = "–" if value is None or value == "" else f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(f"\\{c}" if c in _ESCAPED else c for c in " ".join(shown.split()))


def code(value: object) -> str:
    """A value as code; a backtick in it would end it."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '/')}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(title: str, *parts: str) -> str:
    """A heading and its paragraphs."""
    body = "\n\n".join(part.strip("\n") for part in parts if part)
    return f"## {title}\n\n{body}\n"
