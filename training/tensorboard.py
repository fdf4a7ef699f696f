"""Scalars as TensorBoard reads them: event files of length-framed, checksummed protobuf records.

The two messages that scalars need are written here by hand, so that no TensorBoard is installed to train.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from m4v.core.errors import DataIntegrityError

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_MASK_DELTA = 0xA282EAD8  # of the TFRecord format, whose checksums may be checksummed again
_VERSION = b"brain.Event:2"
_DOUBLE, _BYTES, _FLOAT = 1, 2, 5  # protobuf wire types; 0 is a varint


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """One framed record."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def read_records(path: Path) -> Iterator[bytes]:
    """Records of an event file, without one that is still being written; raises DataIntegrityError for a checksum
    that does not match."""
    data, at = path.read_bytes(), 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        (crc,) = struct.unpack_from("<I", data, at + 8)
        if crc != masked_crc(data[at : at + 8]):
            raise DataIntegrityError("length of a record does not match its checksum", value=at, where=path.name)
        if at + size + 16 > len(data):
            return
        body = data[at + 12 : at + 12 + size]
        if struct.unpack_from("<I", data, at + 12 + size) != (masked_crc(body),):
            raise DataIntegrityError("record does not match its checksum", value=at, where=path.name)
        yield body
        at += size + 16


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire: int, payload: bytes) -> bytes:
    length = _varint(len(payload)) if wire == _BYTES else b""
    return _varint(number << 3 | wire) + length + payload


def event(at: float, step: int, values: Mapping[str, float]) -> bytes:
    """An `Event` message: `wall_time` (1), `step` (2) and a `summary` (5) of values with `tag` (1) and
    `simple_value` (2)."""
    summary = b"".join(
        _field(1, _BYTES, _field(1, _BYTES, tag.encode()) + _field(2, _FLOAT, struct.pack("<f", value)))
        for tag, value in values.items()
    )
    stamp = _field(1, _DOUBLE, struct.pack("<d", at)) + _field(2, 0, _varint(step))
    return stamp + _field(5, _BYTES, summary)


class EventFile:
    """Appends scalars to a new event file in `folder`; `name` tells it from others there."""

    def __init__(self, folder: Path, at: float, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{int(at)}.{name}"
        self._stream = self.path.open("wb")
        self._stream.write(record(_field(1, _DOUBLE, struct.pack("<d", at)) + _field(3, _BYTES, _VERSION)))
        self._stream.flush()

    def write(self, at: float, step: int, values: Mapping[str, float]) -> None:
        """Values of a step at a moment (Unix seconds)."""
        self._stream.write(record(event(at, step, values)))
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
