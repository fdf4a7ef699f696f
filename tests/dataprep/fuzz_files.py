"""Mutations of media containers, and what the product makes of a mutated file: everything from a seed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import media_files
import numpy as np

from dataprep.curate_config import LimitsConfig
from dataprep.engines.limits import usage_of
from dataprep.media.decode import open_reader
from dataprep.media.probe import probe_video
from dataprep.media.reader import decoded
from dataprep.quarantine import ItemError, Reason

Rng = np.random.Generator
FRAMES = 48
_BOXES = (b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"edts", b"elst", b"mdia", b"mdhd", b"hdlr", b"minf", b"stbl",
          b"stsd", b"stts", b"stss", b"ctts", b"stsc", b"stsz", b"stco", b"mdat", b"free")  # fmt: skip


@dataclass(frozen=True)
class Original:
    """`hashed`: its pictures carry checksums, so that wrong pixels can be told; other codecs have none."""

    path: Path
    hashed: bool


def originals(folder: Path) -> list[Original]:
    hevc = {"crf": "20", "x265-params": "hash=1:keyint=12:bframes=2:log-level=none:pools=none:frame-threads=1"}
    same = {"fflags": "+bitexact"}  # the Matroska muxer draws identifiers at random: cases would differ from run to run
    made: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
        ("plain.mp4", "libx265", hevc, {}),
        ("fast.mp4", "libx265", hevc, {"movflags": "+faststart"}),
        ("matroska.mkv", "libx265", hevc, same),
        ("common.mp4", "libx264", {}, {}),
        ("transport.ts", "libx264", {}, {}),
        ("web.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "1M"}, same),
        ("old.avi", "mpeg4", {"g": "12", "bf": "2", "q": "4"}, {}),
    ]
    return [
        Original(media_files.write(folder / n, FRAMES, codec=codec, options=o, container=c), codec == "libx265")
        for n, codec, o, c in made
    ]


def flip_bits(data: bytearray, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def flip_header_bits(data: bytearray, rng: Rng) -> None:
    """In a box's own fields, where the index and the times are."""
    places = [at for box in _BOXES if (at := data.find(box)) >= 0] or [0]
    at = places[int(rng.integers(len(places)))]
    for _ in range(int(rng.integers(1, 5))):
        place = min(len(data) - 1, at - 4 + int(rng.integers(40)))
        data[max(0, place)] ^= 1 << int(rng.integers(8))


def truncate(data: bytearray, rng: Rng) -> None:
    del data[int(rng.integers(len(data))) :]


def splice(data: bytearray, rng: Rng) -> None:
    """A stretch of the file over another, before another, or cut out."""
    length = int(rng.integers(1, max(2, len(data) // 4)))
    source, target = (int(rng.integers(max(1, len(data) - length))) for _ in range(2))
    stretch = bytes(data[source : source + length])
    kind = int(rng.integers(3))
    if kind == 0:
        data[target : target + length] = stretch
    elif kind == 1:
        data[target:target] = stretch
    else:
        del data[source : source + length]


def lie_about_size(data: bytearray, rng: Rng) -> None:
    """Another length in a box's header, or in any four bytes of a file without boxes."""
    places = [at - 4 for box in _BOXES if (at := data.find(box)) >= 4]
    at = places[int(rng.integers(len(places)))] if places else int(rng.integers(max(1, len(data) - 4)))
    claims = (0, 1, 7, 8, 0x7FFFFFFF, 0xFFFFFFFF, int(rng.integers(1 << 16)), int(rng.integers(1 << 32)))
    data[at : at + 4] = claims[int(rng.integers(len(claims)))].to_bytes(4, "big")


def swap_boxes(data: bytearray, rng: Rng) -> None:
    """Two boxes exchange their places, their names, or their fields."""
    spans = []
    for box in _BOXES:
        at = data.find(box) - 4
        size = int.from_bytes(data[at : at + 4], "big") if at >= 0 else 0
        if 8 <= size <= len(data) - at:
            spans.append((at, at + size))
    if len(spans) < 2:
        return splice(data, rng)
    one, two = (spans[int(k)] for k in rng.choice(len(spans), 2, replace=False))
    one, two = sorted((one, two))
    if one[1] <= two[0]:
        first, between, second = data[slice(*one)], data[one[1] : two[0]], data[slice(*two)]
        data[one[0] : two[1]] = second + between + first
    else:  # one inside the other: their names
        data[one[0] + 4 : one[0] + 8], data[two[0] + 4 : two[0] + 8] = (
            data[two[0] + 4 : two[0] + 8], data[one[0] + 4 : one[0] + 8],
        )  # fmt: skip
    return None


def blank(data: bytearray, rng: Rng) -> None:
    """A hole of zeros, as a download leaves it."""
    length = int(rng.integers(1, max(2, len(data) // 3)))
    at = int(rng.integers(max(1, len(data) - length)))
    data[at : at + length] = bytes(min(length, len(data) - at))


MUTATIONS: tuple[Callable[[bytearray, Rng], None], ...] = (
    flip_bits, flip_header_bits, truncate, splice, lie_about_size, swap_boxes, blank,
)  # fmt: skip


def case(originals: list[Original], seed: int) -> Original:
    """The file that case `seed` starts from: every mutation meets every file; half the cases are of hashed ones."""
    turn = seed // len(MUTATIONS)
    hashed = [o for o in originals if o.hashed]
    others = [o for o in originals if not o.hashed]
    return hashed[turn // 2 % len(hashed)] if turn % 2 == 0 else others[turn // 2 % len(others)]


def mutated(original: bytes, seed: int) -> tuple[bytes, str]:
    """The bytes of case `seed`, and the name of what was done to them."""
    rng = np.random.default_rng(seed)
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    data = bytearray(original)
    mutation(data, rng)
    return bytes(data), mutation.__name__


@dataclass(frozen=True)
class Seen:
    """What the product makes of a file. `spans`: digests of the pictures of each run of sound frames."""

    warnings: tuple[str, ...]
    spans: tuple[tuple[str, ...], ...]
    damaged: int
    sought: bool  # pictures found by seeking are those of the pass
    open_files: int
    memory_bytes: int


def look(path: Path) -> Seen:
    """Probe a file, decode it in one pass as curation does, and once more by jumping, as encoding does."""
    facts = probe_video(path)
    reader = open_reader(path)
    count = reader.index.frames
    shown = [frame.picture is not None for frame in reader.shown(range(count), 96)]
    found = {number: digest(frame) for number, frame in decoded(path, reader.index, range(count)) if frame is not None}
    assert [number in found for number in range(count)] == shown
    doubtful = reader.index.doubtful(np.array([number not in found for number in range(count)]))
    if doubtful.mean() > LimitsConfig().max_damaged:  # as curation does
        raise ItemError(Reason.DECODE_ERROR, f"{int(doubtful.sum())} of {count} frames are damaged")
    found = {number: picture for number, picture in found.items() if not doubtful[number]}
    spans: list[list[str]] = []
    for number in range(count):
        if number in found:
            if number - 1 not in found or number in reader.index.breaks:
                spans.append([])
            spans[-1].append(found[number])
    jumps = [n for n in (count * 5 // 6, count // 2, 1) if n in found]
    sought = all(digest_at(path, n) == found[n] for n in jumps)
    used = usage_of(os.getpid())
    return Seen(
        facts.warnings, tuple(map(tuple, spans)), count - len(found), sought,
        len(list(Path("/proc/self/fd").iterdir())), used.memory_bytes if used else 0,
    )  # fmt: skip


def worst_block(files: tuple[Path, Path]) -> float:
    """How near the accepted pictures of the first file are to the second file's: dB, of the worst block of the worst.

    Each picture is held against the one of the original that it is nearest to; blocks are of 16x16 pixels of luma.
    """
    seen, whole = (_lumas(path) for path in files)
    worst = float("inf")
    for picture in seen:
        alike = [_block_errors(picture, other) for other in whole if other.shape == picture.shape]
        error = float(min(alike, key=np.mean).max()) if alike else 255.0**2
        worst = min(worst, 10 * float(np.log10(255**2 / error)) if error else float("inf"))
    return worst


def _lumas(path: Path) -> list[np.ndarray]:
    reader = open_reader(path)
    count = reader.index.frames
    frames = {n: f.to_ndarray(format="gray") for n, f in decoded(path, reader.index, range(count)) if f is not None}
    doubtful = reader.index.doubtful(np.array([n not in frames for n in range(count)]))
    return [frame.astype(np.int16) for n, frame in frames.items() if not doubtful[n]]


def _block_errors(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    height, width = (side // 16 * 16 for side in picture.shape)
    squares = np.square((picture - other)[:height, :width].astype(np.float64))
    errors: np.ndarray = squares.reshape(height // 16, 16, width // 16, 16).mean(axis=(1, 3))
    return errors


def digest_at(path: Path, number: int) -> str | None:
    reader = open_reader(path)
    return next((digest(f) for _, f in decoded(path, reader.index, [number]) if f is not None), None)


def digest(frame: object) -> str:
    pixels = frame.to_ndarray()  # type: ignore[attr-defined]
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def main() -> None:
    """Looks at the files named on standard input, one line of JSON each."""
    for line in sys.stdin:
        try:
            seen = look(Path(line.strip()))
            found: object = [seen.warnings, seen.spans, seen.damaged, seen.sought]
        except ItemError as error:
            found = str(error)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
