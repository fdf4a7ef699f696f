"""How long a file says it is: top-level boxes and elements against its bytes, without any demuxer."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_cut_short(path: Path) -> bool:
    """Whether an MP4, Matroska, WebM or AVI file ends before it says so itself."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(12)
        if head[:4] == _EBML:
            return _matroska_end(stream) > size
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > size
    return head[4:8] in ISO_BOXES and iso_boxes(path)[1]


def iso_boxes(path: Path) -> tuple[list[bytes], bool]:
    """Types of the top-level boxes of an ISO media file, in order, up to the first that makes no sense.

    Also whether the last of them goes beyond the end of the file.
    """
    found: list[bytes] = []
    offset = 0
    size = path.stat().st_size
    with path.open("rb") as stream:
        while offset + 8 <= size and len(found) < 64:
            stream.seek(offset)
            header = stream.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1 and len(header) == 16:
                length = int.from_bytes(header[8:16], "big")
            found.append(kind)
            if length < 8:
                break
            offset += length
    return found, offset > size


def _matroska_end(stream: BinaryIO) -> int:
    """Where the segment ends; 0 where the file does not say (a live recording) or makes no sense."""
    stream.seek(4)
    header = _element_size(stream)
    if header is None:
        return 0
    stream.seek(header, 1)
    if stream.read(4) != _SEGMENT:
        return 0
    size = _element_size(stream)
    return 0 if size is None else stream.tell() + size


def _element_size(stream: BinaryIO) -> int | None:
    """A size of one to eight bytes, the first telling how many (RFC 8794, section 4); None where it is unknown."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = stream.read(length - 1)
    bits = 7 * length
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < length - 1 or value == (1 << bits) - 1 else value
