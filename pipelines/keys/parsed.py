"""Imports of source files as an earlier process parsed them: without them, parsing is a third of a plan's CPU time.

Only a saving: known by the digest of a file's bytes, so an edited file is parsed anew, and a store that is gone,
damaged or cannot be written means parsing again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from m4v.core.canonical import digest_bytes
from m4v.core.local_files import write_atomic

MOST = 4096  # files; more are of source trees that nobody plans with any more


def place() -> Path | None:
    """`~/.cache/m4v/imports.json`; None for a user without a home."""
    try:
        return Path.home() / ".cache" / "m4v" / "imports.json"
    except RuntimeError:
        return None


class ParsedImports:
    """Names that source files import. `parser` is a digest of the code that finds them: another one's are not used."""

    def __init__(self, path: Path | None, parser: str) -> None:
        self._path, self._parser = path, parser
        self._known: dict[str, list[str]] | None = None
        self._used: dict[str, list[str]] = {}
        self._changed = False

    def names(self, source: bytes, package: str, parse: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """What a file of this package with these bytes imports; `parse` is asked where that is not known."""
        if self._known is None:
            self._known = self._read()
        key = f"{digest_bytes(source)} {package}"
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = list(parse())
            self._changed = True
        self._used[key] = found
        return tuple(found)

    def save(self) -> None:
        """Keep what was parsed since the last time. Two processes at once: one's findings are parsed again some day."""
        if not self._changed or self._path is None or self._known is None:
            return
        if len(self._known) > MOST:
            self._known = dict(self._used)
        files = json.dumps(dict(self._known), sort_keys=True)
        stored = {"parser": self._parser, "sha256": digest_bytes(files.encode()), "files": files}
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(stored).encode())
        self._changed = False

    def _read(self) -> dict[str, list[str]]:
        try:
            stored = json.loads(self._path.read_bytes()) if self._path is not None else {}
            if stored["parser"] != self._parser or stored["sha256"] != digest_bytes(stored["files"].encode()):
                return {}
            known: dict[str, list[str]] = json.loads(stored["files"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}
        return known
