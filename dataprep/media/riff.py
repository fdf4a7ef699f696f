"""Damage that the chunks of an AVI file show: each must end where the next begins, up to the end of its list."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_MAX_FAULTS = 1000
_CHUNK = 1 << 20
_NAMED = (b"LIST", b"JUNK", b"idx1", b"RIFF", b"JUNQ")


def faults(path: Path) -> list[int]:
    """Byte offsets at which something else stands than a chunk, in order."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        found: list[int] = []
        lists: list[int] = []  # ends of the lists that the walk is in
        at = 0
        while at + 8 <= size and len(found) < _MAX_FAULTS:
            while lists and at >= lists[-1]:
                lists.pop()
            stream.seek(at)
            name, length = stream.read(4), int.from_bytes(stream.read(4), "little")
            end = at + 8 + length
            if not _is_name(name) or end > (lists[-1] if lists else max(size, end)):
                found.append(at)
                at = _next_stream_chunk(stream, at + 1, size)
                lists.clear()
            elif name in (b"RIFF", b"LIST"):
                lists.append(end)
                at += 12
            else:
                at = end + length % 2
    return found


def _is_name(name: bytes) -> bool:
    """Printable, as all four-character codes are; data of streams is called `01wb`, an index of them `ix01`."""
    return name in _NAMED or all(0x20 <= c < 0x7F for c in name)


def _next_stream_chunk(stream: BinaryIO, at: int, size: int) -> int:
    """Where data of a video stream begins again."""
    while at < size:
        stream.seek(at)
        data = stream.read(_CHUNK)
        places = [p for p in (data.find(code) for code in (b"dc", b"db")) if p >= 2]
        while places:
            place = min(places)
            if data[place - 2 : place].isdigit():
                return at + place - 2
            places = [p for p in (data.find(code, place + 1) for code in (b"dc", b"db")) if p >= 2]
        at += max(1, len(data) - 3)
    return size
