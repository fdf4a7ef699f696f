"""Folding of CUDA fat binaries: their zstd frames unpacked, so that xz sees the code, and packed again to the same
bytes. Needs the package zstandard.

A folded file is MAGIC, then pieces: kind (0 as it was, 1 a frame unpacked), length (8 bytes, little endian), bytes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

SUFFIX, MAGIC = ".folded", b"m4v-folded-1\n"
LEVEL = 5  # nvcc's
FAT = struct.pack("<IHH", 0xBA55ED50, 1, 16)  # magic, version, length of the header
FRAME = b"\x28\xb5\x2f\xfd"
PIECE = struct.Struct("<BQ")


def frames(held: bytes) -> Iterator[tuple[int, int, int]]:
    """Place, length and unpacked length of every zstd frame in a file's fat binaries."""
    start = held.find(FAT)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", held, start + 8)
        place, end = start + 16, start + 16 + size
        while place < end:
            header, padded, packed = struct.unpack_from("<4xIQI", held, place)
            (unpacked,) = struct.unpack_from("<Q", held, place + 56)
            if held[place + header :][:4] == FRAME:
                yield place + header, packed, unpacked
            place += header + padded
        start = held.find(FAT, end)


def fold(held: bytes) -> bytes | None:
    """None where there is nothing to fold, or it would not come back as it was."""
    import zstandard

    pieces, done = [MAGIC], 0
    for place, length, unpacked in frames(held):
        code = zstandard.ZstdDecompressor().decompress(held[place : place + length], max_output_size=unpacked)
        pieces += [PIECE.pack(0, place - done), held[done:place], PIECE.pack(1, len(code)), code]
        done = place + length
    if not done:
        return None
    folded = b"".join([*pieces, PIECE.pack(0, len(held) - done), held[done:]])
    return folded if unfold(folded) == held else None


def unfold(folded: bytes) -> bytes:
    """The file that was folded. Raises ValueError for anything else."""
    import zstandard

    if not folded.startswith(MAGIC):
        raise ValueError("not a folded file")
    out, place = [], len(MAGIC)
    while place < len(folded):
        kind, length = PIECE.unpack_from(folded, place)
        held = folded[place + PIECE.size : place + PIECE.size + length]
        out.append(zstandard.ZstdCompressor(level=LEVEL).compress(held) if kind else held)
        place += PIECE.size + length
    return b"".join(out)


def main(folder: Path) -> None:
    """Unfold everything below a folder in its place."""
    for path in sorted(folder.rglob("*" + SUFFIX)):
        path.with_name(path.name.removesuffix(SUFFIX)).write_bytes(unfold(path.read_bytes()))
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
