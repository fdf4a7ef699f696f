"""A second decoder that watches the first, for codecs without checksums whose decoders pass over damage in silence.

What a witness objects to is damage: two decoders agree on every sound stream, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import av
import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dataprep.media.vp9 import coded_frames, padded

_PLANES = 3  # of luma and colour; an alpha plane is one decoder's only


class Witness(Protocol):
    """Sees every packet once, in order, and after each seek begins at a key frame."""

    def confirms(self, packet: bytes, frames: Sequence[VideoFrame]) -> bool:
        """Whether nothing speaks against `frames`, which the first decoder made of `packet`."""

    def flush(self) -> None:
        """Decoding goes on elsewhere."""


def witness_of(stream: VideoStream, decoder: CodecContext) -> Witness | None:
    """The witness of `decoder`; None for codecs where none would help."""
    if decoder.name == "libvpx":
        return _Twin(stream)
    return _Ends(stream) if decoder.name == "libvpx-vp9" else None


def _beside(stream: VideoStream, name: str) -> CodecContext:
    decoder = CodecContext.create(name, "r")
    decoder.extradata = stream.codec_context.extradata
    decoder.thread_count = 1
    decoder.options = dict(stream.codec_context.options)
    return decoder


class _Ends:
    """VP9: every frame's data, hidden frames' too, end where they are read to the end (see `vp9`)."""

    def __init__(self, stream: VideoStream) -> None:
        self._decoder = _beside(stream, "libvpx-vp9")

    def confirms(self, packet: bytes, frames: Sequence[VideoFrame]) -> bool:
        try:
            for frame in coded_frames(packet):
                self._decoder.decode(Packet(padded(frame)))  # type: ignore[attr-defined]
        except av.error.FFmpegError:
            return False
        return True

    def flush(self) -> None:
        self._decoder.flush_buffers()


class _Twin:
    """VP8: FFmpeg's own decoder shows the same picture; it goes on in another way where data are missing."""

    def __init__(self, stream: VideoStream) -> None:
        self._decoder = _beside(stream, "vp8")

    def confirms(self, packet: bytes, frames: Sequence[VideoFrame]) -> bool:
        try:
            own = self._decoder.decode(Packet(packet))  # type: ignore[attr-defined]
        except av.error.FFmpegError:
            return False
        return len(own) == len(frames) and all(map(_alike, own, frames))

    def flush(self) -> None:
        self._decoder.flush_buffers()


def _alike(one: VideoFrame, other: VideoFrame) -> bool:
    pairs = zip(one.planes[:_PLANES], other.planes[:_PLANES], strict=True)
    return all(np.array_equal(_samples(a), _samples(b)) for a, b in pairs)


def _samples(plane: av.video.plane.VideoPlane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
