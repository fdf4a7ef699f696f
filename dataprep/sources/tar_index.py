"""The members of a plain tar by their headers: ustar, GNU and pax, with limits that hostile files do not pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20  # a long name or pax record; a header may claim gigabytes
MAX_MEMBERS = 20_000_000
_REGULAR, _DIRECTORY = b"0\x007", b"5"


class TarMember(NamedTuple):
    """A regular file of `size` bytes at `offset`; or, with a `problem`, something that must not be used."""

    name: str
    offset: int
    size: int
    problem: str | None = None


class TarError(Exception):
    """The archive cannot be read on from here."""


def tar_members(stream: IO[bytes]) -> Iterator[TarMember]:
    """Members in file order, directories left out. Names are decoded as UTF-8 with escapes for other bytes.

    Raises TarError for bytes that are no header, and where the archive breaks off.
    """
    end = stream.seek(0, 2)
    at, count = 0, 0
    name: str | None = None
    pax: dict[str, str] = {}
    while at + BLOCK <= end:
        stream.seek(at)
        header = stream.read(BLOCK)
        if header == bytes(BLOCK):
            return
        size, kind = _checked(header, at), header[156:157]
        count += 1
        if count > MAX_MEMBERS:
            raise TarError(f"more than {MAX_MEMBERS} members")
        if kind in (b"L", b"K", b"x", b"g"):
            payload = _extension(stream, at, size, end)
            if kind == b"L":
                name = _text(payload.partition(b"\0")[0])
            elif kind == b"x":
                pax = _pax(payload, at)
        else:
            size = _whole(pax["size"], at) if "size" in pax else size
            full = pax.get("path") or name or _name(header)
            problem = _problem(kind, header, pax)
            if problem is None and at + BLOCK + size > end:
                raise TarError(f"member {full!r} at byte {at} has {end - at - BLOCK} of its {size} bytes")
            if kind != _DIRECTORY:
                yield TarMember(full, at + BLOCK, size, problem)
            name, pax = None, {}
            if problem is not None and kind != b"S":
                size = 0  # links and devices have no data, whatever their header says
        at += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
    if at < end or count == 0:
        raise TarError(f"no member header at byte {at}")


def _checked(header: bytes, at: int) -> int:
    """The size of a header whose checksum agrees."""
    total = sum(header) - sum(header[148:156]) + 8 * 0x20
    try:
        if int(header[148:156].split(b"\0")[0].strip() or b"0", 8) != total:
            raise ValueError
        return _number(header[124:136])
    except ValueError:
        raise TarError(f"no tar header at byte {at}") from None


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for sizes past 8 GiB
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _whole(text: str, at: int) -> int:
    if not text.isdigit():
        raise TarError(f"pax size {text[:20]!r} at byte {at} is no number")
    return int(text)


def _name(header: bytes) -> str:
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    return _text(prefix + b"/" + name if prefix and header[257:262] == b"ustar" and header[262:263] == b"\0" else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _extension(stream: IO[bytes], at: int, size: int, end: int) -> bytes:
    if size > MAX_EXTENSION_BYTES or at + BLOCK + size > end:
        raise TarError(f"extended header of {size} bytes at byte {at}")
    return stream.read(size)


def _pax(payload: bytes, at: int) -> dict[str, str]:
    found: dict[str, str] = {}
    while payload and payload[0] != 0:
        head, _, _ = payload.partition(b" ")
        length = int(head) if head.isdigit() else 0
        record = payload[len(head) + 1 : length]
        if length <= len(head) + 1 or not record.endswith(b"\n"):
            raise TarError(f"broken pax header at byte {at}")
        key, _, value = record[:-1].partition(b"=")
        found[_text(key)] = _text(value)
        payload = payload[length:]
    return found


def _problem(kind: bytes, header: bytes, pax: dict[str, str]) -> str | None:
    if kind == b"S" or any(key.startswith("GNU.sparse.") for key in pax):
        return "sparse file"
    if kind in (b"1", b"2"):
        return "hard link" if kind == b"1" else "symbolic link"
    if kind not in _REGULAR and kind != _DIRECTORY:
        return f"special file of type {kind!r}"
    return None
