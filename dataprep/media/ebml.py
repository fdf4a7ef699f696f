"""Damage that the structure of a Matroska or WebM file shows: sizes, element ids, block headers, CRC-32 elements.

Demuxers pass over such places in silence and go on at the next cluster.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_TRACKS, _ENTRY, _NUMBER = 0x1654AE6B, 0xAE, 0xD7
_TIMESTAMP, _SIMPLE, _GROUP, _BLOCK, _CRC = 0xE7, 0xA3, 0xA0, 0xA1, 0xBF
# Elements of RFC 9559 by their parent; 0xEC (void) and 0xBF (CRC-32) may stand anywhere.
_TOP = {0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469, 0xEC, _CRC}
_IN_CLUSTER = {_TIMESTAMP, 0x5854, 0xA7, 0xAB, _SIMPLE, _GROUP, 0xAF, 0xEC, _CRC}
_IN_GROUP = {_BLOCK, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8, 0xAF, 0xEC, _CRC}
_MAX_FAULTS = 1000
_MAX_CHECKED = 64 << 20  # bytes of one element whose CRC-32 is compared
_CHUNK = 1 << 20
_RESERVED = 0x70  # flag bits of a simple block that are zero


class _Element(NamedTuple):
    ident: int
    data: int  # offset of its content
    end: int | None  # None: until something of a higher level begins


def faults(path: Path) -> list[int]:
    """Byte offsets at which the file contradicts itself, in order."""
    with path.open("rb") as stream:
        return _Walk(stream, path.stat().st_size).run()


class _Walk:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self._faults: list[int] = []
        self._tracks: set[int] = set()
        self._time = -1

    def run(self) -> list[int]:
        header = self._element(0, self._size)
        segment = self._element(header.end, self._size) if header and header.end else None
        if header is None or header.ident != _EBML or segment is None or segment.ident != _SEGMENT:
            return [0]
        end = self._size if segment.end is None else segment.end
        at = segment.data
        while at < min(end, self._size) and len(self._faults) < _MAX_FAULTS:
            at = self._top(at, end)
        if end < self._size:
            follows = self._element(end, self._size)
            if follows is None or follows.ident != _EBML:
                self._faults.append(end)
        return self._faults

    def _top(self, at: int, end: int) -> int:
        """Where the next element of the segment begins."""
        element = self._element(at, end)
        # Elements of four-byte ids that are not known may be extensions; shorter ones are rubble.
        if element is None or (element.ident not in _TOP and element.ident < 1 << 28):
            return self._lost(at)
        if element.ident == _CLUSTER:
            return self._cluster(element, end)
        if element.end is None:
            return self._lost(at)
        if element.ident == _TRACKS:  # what is wrong in titles, tags and cues leaves pictures whole
            if not self._sums_up(element.data, element.end):
                self._faults.append(at)
            self._read_tracks(element)
        return element.end

    def _cluster(self, cluster: _Element, limit: int) -> int:
        end = limit if cluster.end is None else cluster.end
        if cluster.end is not None and not self._sums_up(cluster.data, end):
            self._faults.append(cluster.data)
        at = cluster.data
        while at < min(end, self._size):
            child = self._element(at, end)
            if cluster.end is None and child is not None and child.ident in _TOP - {0xEC, _CRC}:
                return at
            if child is None or child.ident not in _IN_CLUSTER or child.end is None or not self._sound(child):
                return self._lost(at)
            at = child.end
        return end

    def _sound(self, child: _Element) -> bool:
        assert child.end is not None
        if child.ident == _TIMESTAMP:
            time = int.from_bytes(self._read(child.data, min(8, child.end - child.data)), "big")
            before, self._time = self._time, time
            return time >= before
        if child.ident == _GROUP:
            return self._sound_group(child.data, child.end)
        return child.ident != _SIMPLE or self._sound_block(child, _RESERVED)

    def _sound_group(self, at: int, end: int) -> bool:
        while at < end:
            child = self._element(at, end)
            if child is None or child.ident not in _IN_GROUP or child.end is None:
                return False
            if child.ident == _BLOCK and not self._sound_block(child, 0):
                return False
            at = child.end
        return True

    def _sound_block(self, block: _Element, reserved: int) -> bool:
        head = self._read(block.data, 12)
        track, length = _number(head, 0)
        if track is None or block.end is None or block.data + length + 3 > block.end or len(head) < length + 3:
            return False
        return (not self._tracks or track in self._tracks) and not head[length + 2] & reserved

    def _read_tracks(self, tracks: _Element) -> None:
        for entry in self._children(tracks):
            if entry.ident == _ENTRY:
                for child in self._children(entry):
                    if child.ident == _NUMBER and child.end is not None:
                        self._tracks.add(int.from_bytes(self._read(child.data, child.end - child.data), "big"))

    def _children(self, parent: _Element) -> list[_Element]:
        found: list[_Element] = []
        at, end = parent.data, parent.end or 0
        while at < end:
            child = self._element(at, end)
            if child is None or child.end is None:
                return []
            found.append(child)
            at = child.end
        return found

    def _sums_up(self, at: int, end: int) -> bool:
        """Whether the CRC-32 element at the beginning, where there is one, is that of what follows it."""
        first = self._element(at, end)
        if first is None or first.ident != _CRC or first.end != first.data + 4 or end - at > _MAX_CHECKED:
            return True
        stored = int.from_bytes(self._read(first.data, 4), "little")
        return zlib.crc32(self._read(first.end, end - first.end)) == stored

    def _element(self, at: int, limit: int) -> _Element | None:
        """None for what is no element, or goes beyond `limit`."""
        head = self._read(at, 12)
        if not head or head[0] < 0x10:
            return None
        width = 9 - head[0].bit_length()
        size, length = _number(head, width)
        if size is None and not length:
            return None
        data = at + width + length
        end = None if size is None else data + size
        if data > limit or (end is not None and end > limit):
            return None
        return _Element(int.from_bytes(head[:width], "big"), data, end)

    def _lost(self, at: int) -> int:
        self._faults.append(at)
        return self._next_cluster(at + 1)

    def _next_cluster(self, at: int) -> int:
        mark = _CLUSTER.to_bytes(4, "big")
        while at < self._size:
            chunk = self._read(at, _CHUNK)
            found = chunk.find(mark)
            if found >= 0:
                return at + found
            at += max(1, len(chunk) - 3) if len(chunk) == _CHUNK else len(chunk) + 1
        return self._size

    def _read(self, at: int, count: int) -> bytes:
        self._stream.seek(at)
        return self._stream.read(count)


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """A variable-length number (RFC 8794, section 4) and its bytes: (None, bytes) where all its bits are set, which
    means *unknown*, and (None, 0) where there is none.
    """
    if at >= len(data) or data[at] == 0:
        return None, 0
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return None, 0
    bits = 7 * length
    value = int.from_bytes(data[at : at + length], "big") & ((1 << bits) - 1)
    return (None if value == (1 << bits) - 1 else value), length
