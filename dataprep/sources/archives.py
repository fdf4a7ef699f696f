"""Media inside archives, read in place: zip through its central directory, plain tar through its headers.

A member's path is `ARCHIVE!/MEMBER`. Nothing is unpacked by name: a member's bytes go to a file that the caller
names, its size and CRC-32 checked. An archive may be split into `NAME_partaa`, `NAME_partab`, … (NAME.zip).
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from dataprep.sources.tar_index import TarError, TarMember, tar_members
from dataprep.sources.text import path_problem
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage, replacing

SEPARATOR = "!/"
MAX_RATIO = 200  # unpacked over packed; video does not shrink, bombs do
MAX_MEMBER_BYTES = 1 << 40
_CHUNK = 1 << 20
_MEMBER = re.compile(r"(.+?\.(?:tar|zip))!/(.+)", re.DOTALL)
# What zipfile raises for bytes that are no whole zip (NotImplementedError is a RuntimeError).
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, OverflowError, struct.error)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ZipMember(NamedTuple):
    """One file of a zip; with a `problem` it must not be used."""

    name: str
    size: int
    crc32: int
    problem: str | None = None


def member_path(archive: str, name: str) -> str:
    return f"{archive}{SEPARATOR}{name}"


def split_path(path: str) -> tuple[str, str] | None:
    """(archive, member) of a member's path, None for the path of a plain file (in a folder `wow!`, say)."""
    match = _MEMBER.fullmatch(path)
    return (match[1], match[2]) if match else None


class JoinedParts(io.RawIOBase):
    """Files read as if they were one, seekable."""

    def __init__(self, streams: list[BinaryIO]) -> None:
        self._streams = streams
        self._sizes = [stream.seek(0, os.SEEK_END) for stream in streams]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: sum(self._sizes)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        at = self._at
        for stream, size in zip(self._streams, self._sizes, strict=True):
            if at < size:
                stream.seek(at)
                data = stream.read(min(len(view), size - at))
                view[: len(data)] = data
                self._at += len(data)
                return len(data)
            at -= size
        return 0

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        super().close()


def part_names(storage: Storage, archive: str) -> list[str]:
    """The files that make up an archive: itself, or its parts in order.

    Raises InputError when nothing of it is there, or when a part is missing before the last one.
    """
    if storage.exists(archive):
        return [archive]
    stem = archive.removesuffix(".zip")
    names = [f"{stem}_part{a}{b}" for a in _LETTERS for b in _LETTERS]
    found = []
    for number, name in enumerate(names):
        if storage.exists(name):
            found.append(name)
        elif any(storage.exists(later) for later in names[number + 1 : number + 4]):
            raise InputError("a part of a split archive is missing", value=name, where=storage.uri)
        else:
            break
    if not found:
        raise InputError("archive does not exist", value=archive, where=storage.uri)
    return found


def open_archive(storage: Storage, archive: str) -> BinaryIO:
    """The whole archive as one seekable stream."""
    streams = [storage.open(name) for name in part_names(storage, archive)]
    return streams[0] if len(streams) == 1 else cast(BinaryIO, io.BufferedReader(JoinedParts(streams), _CHUNK))


def open_zip(storage: Storage, archive: str) -> zipfile.ZipFile:
    """Only the end of the archive and its central directory are read.

    Raises InputError when they are not there: a truncated archive, or one whose last part is missing.
    """
    stream = open_archive(storage, archive)
    try:
        return zipfile.ZipFile(stream)
    except _DAMAGED as error:
        parts = part_names(storage, archive)
        stream.close()
        split = f"; found the parts {', '.join(parts)}: is a later one missing?" if parts != [archive] else ""
        raise InputError(
            f"zip archive has no readable directory ({error}){split}", value=archive, where=storage.uri,
            next_step="fetch it again and compare its size with the publisher's",
        ) from None  # fmt: skip


def zip_members(storage: Storage, archive: str) -> Iterator[ZipMember]:
    """Members in the order of the central directory, directories left out."""
    with open_zip(storage, archive) as opened:
        for info in opened.infolist():
            if not info.filename.endswith("/"):
                yield ZipMember(info.filename, info.file_size, info.CRC, _zip_problem(info))


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    if problem := path_problem(info.orig_filename):
        return problem
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.create_system == 3 and (info.external_attr >> 28) not in (0, 0x8):
        return "symbolic link or special file"
    if info.file_size > MAX_MEMBER_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 4096):
        return f"unpacks {info.compress_size} bytes to {info.file_size}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}"
    return None


def shard_members(storage: Storage, archive: str) -> Iterator[TarMember]:
    """Members of a plain tar; raises TarError where it cannot be read on."""
    with open_archive(storage, archive) as stream:
        if stream.read(2) == b"\x1f\x8b":
            raise TarError("compressed with gzip, so its members cannot be reached one by one: unpack it to plain tar")
        yield from tar_members(stream)


def copy_member(storage: Storage, path: str, target: Path) -> None:
    """Copy a member's bytes to `target`, atomically.

    Raises InputError when archive or member is not there, DataIntegrityError when its bytes are not those that the
    archive promises.
    """
    found = split_path(path)
    if found is None:
        raise InputError("path is not ARCHIVE!/MEMBER", value=path, where=storage.uri)
    with replacing(target) as temporary, temporary.open("wb") as out:
        for chunk in member_chunks(storage, *found):
            out.write(chunk)


def member_chunks(storage: Storage, archive: str, name: str) -> Iterator[bytes]:
    """The bytes of a member; the last checks are made when it ends."""
    if archive.endswith(".zip"):
        return _zip_chunks(storage, archive, name)
    return _tar_chunks(storage, archive, name)


def _zip_chunks(storage: Storage, archive: str, name: str) -> Iterator[bytes]:
    opened = _zip_of(storage.uri, archive, os.getpid())
    try:
        info = opened.getinfo(name)
    except KeyError:
        raise InputError("member is not in the archive", value=name, where=archive) from None
    if problem := _zip_problem(info):
        raise DataIntegrityError(f"member must not be read: {problem}", value=name, where=archive)
    try:
        with opened.open(info) as stream:
            yield from _counted(stream, info.file_size, name, archive)
    except _DAMAGED as error:
        raise DataIntegrityError(f"member is damaged: {error}", value=name, where=archive) from None


def _tar_chunks(storage: Storage, archive: str, name: str) -> Iterator[bytes]:
    place = _tar_of(storage.uri, archive, os.getpid()).get(name)
    if place is None:
        raise InputError("member is not in the archive", value=name, where=archive)
    with open_archive(storage, archive) as stream:
        stream.seek(place[0])
        yield from _counted(stream, place[1], name, archive)


def _counted(stream: IO[bytes], size: int, name: str, archive: str) -> Iterator[bytes]:
    left = size
    while left:
        chunk = stream.read(min(_CHUNK, left))
        if not chunk:
            raise DataIntegrityError(f"member ends {left} bytes early", value=name, where=archive)
        left -= len(chunk)
        yield chunk


# An open archive is of one process: children of a fork would share its file position.
@lru_cache(maxsize=8)
def _zip_of(uri: str, archive: str, process: int) -> zipfile.ZipFile:
    return open_zip(Storage(uri), archive)


@lru_cache(maxsize=8)
def _tar_of(uri: str, archive: str, process: int) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        for member in shard_members(Storage(uri), archive):
            if member.problem is None:
                found.setdefault(member.name, (member.offset, member.size))
    except TarError:
        pass  # what comes before the damage is whole; the listing has reported it
    return found
