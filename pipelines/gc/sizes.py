"""How many bytes a deletion gives back: files that other artifacts share by hard links give nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from m4v.core.storage import Storage


def freed_bytes(artifacts: Iterable[tuple[str, int]]) -> int:
    """Bytes that deleting these together frees; `artifacts`: (uri, size). Of a remote store their whole sizes."""
    freed = 0
    links: dict[tuple[int, int], list[int]] = {}  # file -> its size, its links, links among these artifacts
    for uri, size in artifacts:
        place = Storage(uri)
        if not place.is_local:
            freed += size
            continue
        for path in _files(place.local_root):
            status = path.stat()
            links.setdefault((status.st_dev, status.st_ino), [status.st_size, status.st_nlink, 0])[2] += 1
    return freed + sum(size for size, count, here in links.values() if here >= count)


def _files(folder: Path) -> Iterable[Path]:
    return (p for p in folder.rglob("*") if p.is_file())
