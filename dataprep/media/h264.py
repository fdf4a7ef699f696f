"""What H.264 slices say of their picture (ITU-T H.264, table 7-1, clause 7.3.3 and annex B)."""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR = 1, 5
_INTRA = (2, 4, 7, 9)
_BIPREDICTIVE = (1, 6)
_START = b"\0\0\1"
_HEADER = 16  # bytes of a unit that hold its first two numbers, whatever they are


def h264_prefix(extradata: bytes | None) -> int:
    """Bytes of the length before each unit of a packet; 0 where start codes part them."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def is_idr(packet: bytes, prefix: int) -> bool:
    """Whether a packet's slices are all intra, of an instantaneous refresh.

    Some encoders mark pictures so that refer to others: their decoding is no measure of damage.
    """
    slices = [unit for unit in _units(packet, prefix) if _SLICE <= unit[0] & 31 <= _IDR]
    return bool(slices) and all(unit[0] & 31 == _IDR and _slice_type(unit) in _INTRA for unit in slices)


def is_bipredictive(packet: bytes, prefix: int) -> bool:
    """Whether a packet holds a B slice: nearly always a picture that is shown before one decoded earlier."""
    return any(_SLICE <= unit[0] & 31 <= _IDR and _slice_type(unit) in _BIPREDICTIVE for unit in _units(packet, prefix))


def _units(packet: bytes, prefix: int) -> Iterator[bytes]:
    """The beginnings of the units in a packet."""
    if not prefix:
        at = packet.find(_START)
        while 0 <= at < len(packet) - 3:
            yield packet[at + 3 : at + 3 + _HEADER]
            at = packet.find(_START, at + 3)
        return
    at = 0
    while at + prefix < len(packet):
        yield packet[at + prefix : at + prefix + _HEADER]
        at += prefix + int.from_bytes(packet[at : at + prefix], "big")


def _slice_type(unit: bytes) -> int:
    """The second Exp-Golomb number of a slice header, after the address of its first block; -1 where there is none."""
    payload = unit[1:].replace(b"\0\0\3", b"\0\0")
    bits = "".join(f"{byte:08b}" for byte in payload)
    value = -1
    for _ in range(2):
        zeros = bits.find("1")
        if zeros < 0 or len(bits) < 2 * zeros + 1:
            return -1
        value = int(bits[zeros : 2 * zeros + 1], 2) - 1
        bits = bits[2 * zeros + 1 :]
    return value
