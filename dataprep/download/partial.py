"""A partly fetched file on disk, with what is needed to fetch just the rest of it later."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Partial:
    """The bytes so far of one URL, and the validator (strong ETag or Last-Modified) of the body they belong to."""

    def __init__(self, folder: Path, path: str, url: str) -> None:
        name = hashlib.sha256(f"{path}\0{url}".encode(errors="surrogatepass")).hexdigest()
        self.file = folder / name[:2] / f"{name}.part"
        self._facts = self.file.with_suffix(".json")

    def resumable(self) -> tuple[int, str] | None:
        """(bytes that are here, validator); None when there are none or nothing proves what they belong to.

        After a reboot the file may have holes where bytes were never written, so it does not count.
        """
        try:
            facts = json.loads(self._facts.read_bytes())
            size = self.file.stat().st_size
        except (OSError, ValueError):
            return None
        validator = facts.get("validator") if isinstance(facts, dict) else None
        if not isinstance(validator, str) or not validator or facts.get("boot") != _boot() or size == 0:
            return None
        return size, validator

    def begin(self, validator: str | None) -> BinaryIO:
        """An empty file to write to; `validator` is remembered before the first byte."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._facts.unlink(missing_ok=True)
        stream = self.file.open("wb")
        if validator is not None:
            self._facts.write_text(json.dumps({"validator": validator, "boot": _boot()}))
        return stream

    def append(self) -> BinaryIO:
        return self.file.open("ab")

    def digests(self) -> dict[str, str]:
        """md5 and sha256 of the bytes that are here, hex."""
        hashes = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
        with self.file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                for each in hashes.values():
                    each.update(block)
        return {name: each.hexdigest() for name, each in hashes.items()}

    def discard(self) -> None:
        for file in (self.file, self._facts):
            file.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Put the whole file in its place on the same file system; a reader sees all of it or nothing."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("rb") as stream:
            os.fsync(stream.fileno())
        self.file.replace(target)
        self._facts.unlink(missing_ok=True)


def _boot() -> str:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""


def validator_of(headers: Mapping[str, str]) -> str | None:
    """What If-Range may carry: a strong ETag, else Last-Modified."""
    etag = headers.get("etag", "").strip()
    if etag.startswith('"') and len(etag) > 2:
        return etag
    return headers.get("last-modified") or None
