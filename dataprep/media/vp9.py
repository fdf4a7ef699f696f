"""VP9: the coded frames inside a packet, and zeros after each, so that a decoder notices where the frame really ends.

A frame's data are arithmetic coded. What is damaged desynchronises the decoder, which then ends elsewhere than the
data do: beyond them, or before them, with bytes left over that are not the zeros of padding (VP9 specification, 9.2.3).
"""

from __future__ import annotations

_MARKER, _MARKER_BITS = 0xC0, 0xE0  # of the byte around a superframe's index (annex B)
_PADDING = bytes(16)  # libvpx tells of no rest that is nearer to the end than it reads ahead, 8 bytes


def coded_frames(packet: bytes) -> list[bytes]:
    """The frames of a superframe, hidden ones first; the packet itself where it is none, or where its index lies."""
    marker = packet[-1] if packet else 0
    if marker & _MARKER_BITS != _MARKER:
        return [packet]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(packet) - 2 - count * width
    if index < 0 or packet[index] != marker:
        return [packet]
    places = range(index + 1, index + 1 + count * width, width)
    sizes = [int.from_bytes(packet[at : at + width], "little") for at in places]
    if 0 in sizes or sum(sizes) > index:
        return [packet]
    ends = [sum(sizes[: k + 1]) for k in range(count)]
    return [packet[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def padded(frame: bytes) -> bytes:
    """`frame` and zeros; unchanged where its last byte announces an index that is not there."""
    return frame if frame[-1:] and frame[-1] & _MARKER_BITS == _MARKER else frame + _PADDING
