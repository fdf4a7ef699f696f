"""Makes small videos of every kind that decoding must survive; frame k carries k in its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 9
CELL = 16
WIDTH, HEIGHT = BITS * CELL, 64


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture whose top row of cells spells `number` in binary, over a moving grey ramp."""
    ramp = (np.arange(width) + 3 * number) % 160 + 40
    picture = np.repeat(np.repeat(ramp[None, :, None], height, axis=0), 3, axis=2).astype(np.uint8)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 235 if number >> bit & 1 else 16
    return picture


def number_of(picture: np.ndarray) -> int:
    """The number that a decoded picture of `numbered` spells, whatever its scale."""
    height, width = picture.shape[:2]
    y = height * CELL // (2 * HEIGHT)
    cells = [picture[y, width * (2 * bit + 1) // (2 * BITS)].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, value in enumerate(cells) if value > 128)


def write(
    path: Path,
    frames: int = 60,
    *,
    codec: str = "libx264",
    fps: int = 24,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    picture: Callable[[int], np.ndarray] = numbered,
    adjust: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Encode `frames` pictures; `pts` are ticks of 1/1000 s and make a variable rate."""
    first = picture(0)
    defaults = {"crf": "12", "g": "12", "bf": "2"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], pixel_format
        stream.options = {**defaults, **(options or {})}
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        adjust(stream)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[k], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def with_decoding_times(source: Path, path: Path) -> Path:
    """A copy whose packets are shown when they are decoded, as some muxers write it: B-frames come out of order."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.video[0]
        copied = out.add_stream_from_template(stream)
        packets = [p for p in container.demux(stream) if p.size]
        times = sorted(p.pts for p in packets)
        for packet, time in zip(packets, times, strict=True):
            packet.stream, packet.pts, packet.dts = copied, time, time
            out.mux(packet)
    return path
