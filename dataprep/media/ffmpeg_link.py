"""Lets libraries that need a system's FFmpeg use the FFmpeg that PyAV carries.

PyAV's copies bear names with a digest (`libavcodec-1a2b.so.62`), which no other library asks for. For each, an empty
shared object with the usual name (`libavcodec.so.62`) that needs the copy is made and loaded: from then on the
dynamic linker takes the usual name for it, and one FFmpeg serves the whole process.
"""

from __future__ import annotations

import ctypes
import re
import struct
import sys
import tempfile
from functools import cache
from pathlib import Path

_CARRIED = re.compile(r"/av\.libs/((lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)[\d.]*)$")
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551  # kinds of program headers
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 1, 4, 5, 6, 10, 11, 14  # tags of a dynamic section
_HEADER, _PROGRAM, _SYMBOL, _PAGE = 64, 56, 24, 0x1000
_READ_WRITE = 6


@cache
def link_ffmpeg() -> tuple[str, ...]:
    """Names under which FFmpeg can now be found; empty where PyAV uses the system's own, or outside 64-bit Linux."""
    import av  # noqa: F401 - loads the libraries

    if sys.platform != "linux" or struct.calcsize("P") != 8 or sys.byteorder != "little":
        return ()
    linked: list[str] = []
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays when its file goes
        for needed, name in sorted(_carried()):
            alias = Path(folder) / name
            alias.write_bytes(_alias(name, needed))
            ctypes.CDLL(str(alias))
            linked.append(name)
    return tuple(linked)


def _carried() -> set[tuple[str, str]]:
    """FFmpeg libraries of PyAV that this process has loaded (OpenCV carries others), and their usual names."""
    lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    matches = (_CARRIED.search(line) for line in lines)
    return {(m[1], f"{m[2]}.so.{m[3]}") for m in matches if m}


def _alias(name: str, needed: str) -> bytes:
    """A shared object called `name` that holds nothing and needs `needed` (System V ABI, chapters 4 and 5)."""
    machine = Path(sys.executable).open("rb").read(20)[18:20]  # noqa: SIM115 - read at once
    strings = b"\0" + name.encode() + b"\0" + needed.encode() + b"\0"
    symbols = _HEADER + 3 * _PROGRAM
    table = symbols + _SYMBOL
    texts = table + 16
    dynamic = -(-(texts + len(strings)) // 8) * 8
    tags = (
        (_NEEDED, 2 + len(name)), (_SONAME, 1), (_HASH, table), (_STRTAB, texts), (_SYMTAB, symbols),
        (_STRSZ, len(strings)), (_SYMENT, _SYMBOL), (0, 0),
    )  # fmt: skip
    size = dynamic + 16 * len(tags)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<H", 3) + machine
    header += struct.pack("<IQQQIHHHHHH", 1, 0, _HEADER, 0, 0, _HEADER, _PROGRAM, 3, 0, 0, 0)
    header += (
        _program(_LOAD, 0, size, _PAGE) + _program(_DYNAMIC, dynamic, 16 * len(tags), 8) + _program(_STACK, 0, 0, 16)
    )
    body = header + bytes(_SYMBOL) + struct.pack("<4I", 1, 1, 0, 0) + strings
    return body.ljust(dynamic, b"\0") + b"".join(struct.pack("<QQ", *tag) for tag in tags)


def _program(kind: int, offset: int, size: int, align: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, _READ_WRITE, offset, offset, offset, size, size, align)
