"""Small H.264 files: the one writer and reader of the clips that stages publish.

Same frames, rate and quality give the same bytes on every run: one encoder thread, no dates, no muxer
versions, and x264 told not to depend on the kind of processor. Colours are BT.709, limited range, tagged.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation

from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import replacing, write_atomic

Frames = npt.NDArray[np.uint8]

# Exact integer arithmetic in the colour conversion, so that SIMD paths cannot differ.
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
_X264 = "threads=1:lookahead-threads=1:cpu-independent=1:colorprim=bt709:transfer=bt709:colormatrix=bt709"
_BT709 = 1
_MAX_RATE_DENOMINATOR = 1001  # 24000/1001 and its kin stay exact


def rational_fps(fps: float | Fraction) -> Fraction:
    """Frame rate as the fraction a container stores; raises InputError unless positive and finite."""
    if not (isinstance(fps, Fraction) or np.isfinite(fps)) or fps <= 0:
        raise InputError("frame rate is not a positive number", value=fps, where="write_mp4")
    exact = Fraction(fps)
    ntsc = Fraction(round(exact * 1001 / 1000) * 1000, 1001)
    near_ntsc = abs(exact - ntsc) < Fraction(1, 1000) and exact.denominator != 1
    return ntsc if near_ntsc else exact.limit_denominator(_MAX_RATE_DENOMINATOR)


class Mp4Encoder:
    """H.264 (yuv420p) MP4 into `sink` (seekable), a few frames at a time: memory does not grow with length.

    The pieces that frames come in do not change the bytes. Raises InputError for a frame rate that is not positive.
    """

    def __init__(self, sink: BinaryIO, fps: float | Fraction, crf: int = 12, preset: str = "medium") -> None:
        self._rate, self._crf, self._preset = rational_fps(fps), crf, preset
        self._container = av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"})
        self._stream: av.VideoStream | None = None
        self.frames = 0

    def write(self, frames: Frames) -> None:
        """Append uint8 (n, H, W, 3) RGB frames, n >= 1, H and W even. Raises InputError for another shape or type,
        and for frames of another size than those before."""
        _check(frames)
        height, width = frames.shape[1:3]
        stream = self._stream = self._stream or self._start(height, width)
        if (stream.height, stream.width) != (height, width):
            raise InputError(
                f"a video of {stream.height}x{stream.width} cannot go on with other frames",
                value=f"{height}x{width}", where="write_mp4",
            )  # fmt: skip
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=_BT709, dst_color_range=ColorRange.MPEG, interpolation=_SCALER,
                dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709, threads=1,
            )  # fmt: skip
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            self._container.mux(stream.encode(frame))
            self.frames += 1

    def finish(self) -> None:
        """Write what the encoder still holds, and the index. Raises InputError when no frame came."""
        if self._stream is None:
            self.close()
            raise InputError("a video needs at least one frame", value=0, where="write_mp4")
        self._container.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        """Let go of the encoder; without `finish` what is in the sink is no whole video."""
        self._container.close()

    def _start(self, height: int, width: int) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        # `frame` threading would be refused with one thread; the timescale keeps the rate exact.
        stream.time_base = stream.codec_context.time_base = 1 / self._rate
        stream.options = {
            "crf": str(self._crf), "preset": self._preset, "flags": "+bitexact", "x264-params": _X264,
        }  # fmt: skip
        return stream


def encode_frames(
    chunks: Iterable[Frames], sink: BinaryIO, fps: float | Fraction, crf: int = 12, preset: str = "medium"
) -> int:
    """`Mp4Encoder` over `chunks`, which are taken one by one and closed at an error; returns the number of frames."""
    encoder = Mp4Encoder(sink, fps, crf, preset)
    try:
        for frames in chunks:
            encoder.write(frames)
    except BaseException:
        encoder.close()
        if isinstance(chunks, Generator):  # the error's traceback keeps it, and with it a thread that makes chunks
            chunks.close()
        raise
    encoder.finish()
    return encoder.frames


def encode_mp4(frames: Frames, fps: float | Fraction, crf: int = 12, preset: str = "medium") -> bytes:
    """Bytes of an H.264 (yuv420p) MP4 file. `frames` is uint8 (T, H, W, 3) RGB with even H and W, T >= 1.

    Raises InputError for another shape or type, an odd size, or a frame rate that is not positive.
    """
    _check(frames)
    sink = io.BytesIO()
    encode_frames([frames], sink, fps, crf, preset)
    return sink.getvalue()


def write_mp4(path: Path, frames: Frames, fps: float | Fraction, crf: int = 12, preset: str = "medium") -> None:
    """Write `encode_mp4` to `path`; a reader sees the whole file or none. Raises InputError as that does."""
    write_atomic(path, encode_mp4(frames, fps, crf, preset))


def stream_mp4(
    path: Path, chunks: Iterable[Frames], fps: float | Fraction, crf: int = 12, preset: str = "medium"
) -> int:
    """Write frames to `path` as they come and return their number; the bytes are those of `write_mp4`.

    They grow in a temporary beside `path` (`m4v.core.storage.is_temporary`), renamed when whole: a reader, and
    whoever comes after a kill, sees the whole file or none. Raises InputError as `Mp4Encoder` does.
    """
    with replacing(path) as temporary, temporary.open("w+b") as sink:
        return encode_frames(chunks, sink, fps, crf, preset)


def read_mp4(path: Path | BinaryIO) -> tuple[Frames, float]:
    """All frames, uint8 (T, H, W, 3) RGB, and the frame rate in frames per second.

    Raises InputError when the file is missing, DataIntegrityError when it holds no decodable video.
    """
    where = str(path) if isinstance(path, Path) else "stream"
    if isinstance(path, Path) and not path.is_file():
        raise InputError("video file does not exist", value=str(path))
    try:
        # Tags of other encodings are nothing to fail at.
        with av.open(str(path) if isinstance(path, Path) else path, "r", metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataIntegrityError("file has no video stream", where=where)
            stream = container.streams.video[0]
            stream.thread_count = 1
            frames = [_to_rgb(frame) for frame in container.decode(stream)]
            fps = stream.average_rate
    except av.FFmpegError as error:
        raise DataIntegrityError(f"video does not decode: {error.strerror}", where=where) from None
    if not frames or fps is None:
        raise DataIntegrityError("video stream holds no frames", where=where)
    return np.stack(frames), float(fps)


def _to_rgb(frame: av.VideoFrame) -> Frames:
    picture = frame.reformat(format="rgb24", interpolation=_SCALER, dst_color_range=ColorRange.JPEG, threads=1)
    array: Frames = picture.to_ndarray()
    return array


def _check(frames: Frames) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise InputError("frames are not uint8 (T, H, W, 3)", value=found, where="write_mp4")
    if frames.shape[0] < 1:
        raise InputError("a video needs at least one frame", value=frames.shape, where="write_mp4")
    if frames.shape[1] % 2 or frames.shape[2] % 2 or 0 in frames.shape:
        raise InputError(
            "yuv420p needs even, positive height and width",
            value=f"{frames.shape[1]}x{frames.shape[2]}",
            where="write_mp4",
            next_step="crop or pad to even sizes",
        )
