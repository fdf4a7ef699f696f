"""What a video file holds, every frame decoded; torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError

MAX_PIXELS = 8192 * 4352  # of one frame: what a stranger's file may make us allocate


class Stream(FrozenModel):
    """Of the main video stream: frames that decoded, size, rate and format (`h264 yuv420p`)."""

    frames: int
    height: int
    width: int
    fps: float
    codec: str

    @property
    def shape(self) -> tuple[int, int, int, float]:
        return self.frames, self.height, self.width, round(self.fps, 3)


class _Found(NamedTuple):
    """`told`: frames that the index names, 0 where it names none; `whole`: no packet ended before its size."""

    frames: int
    told: int
    whole: bool
    sizes: frozenset[tuple[int, int]]
    fps: float
    codec: str


def read_stream(path: Path) -> Stream:
    """Decodes one frame at a time. Raises DataIntegrityError, with the reason alone, for a file that is no MP4 video,
    does not decode to its end, changes its size, has larger frames than `MAX_PIXELS` or fewer than its index says.
    Frames that its edit list does not show are not missing, and not counted."""
    found = _decoded(path)
    if found.whole and found.frames < found.told:
        everything = _decoded(path, edited=False)
        if not everything.whole or everything.frames < found.told:
            found = everything._replace(whole=False)
    if not found.whole:
        raise DataIntegrityError(f"is cut off: {found.frames} of {found.told} frames decode")
    if not found.frames or not found.fps:
        raise DataIntegrityError("holds no frames")
    if len(found.sizes) > 1:
        raise DataIntegrityError("changes its size on the way")
    height, width = next(iter(found.sizes))
    return Stream(frames=found.frames, height=height, width=width, fps=found.fps, codec=found.codec)


def _decoded(path: Path, *, edited: bool = True) -> _Found:
    """`edited`: as the file's edit list says; else all that is in it."""
    # `file:` keeps a name like `http:x` from meaning anything else; no demuxer but this reads other files' names.
    options = {"protocol_whitelist": "file"} | ({} if edited else {"ignore_editlist": "1"})
    try:
        with av.open(f"file:{path.absolute()}", format="mov", options=options, metadata_errors="replace") as container:
            return _counted(container, _main_stream(container))
    except av.FFmpegError as error:
        raise DataIntegrityError(f"does not decode: {error.strerror}") from None
    except ValueError as error:  # PyAV's own, of what it cannot represent
        raise DataIntegrityError(f"does not decode: {error}") from None


def _main_stream(container: InputContainer) -> VideoStream:
    """The first of those shown by default, else the first; cover art does not count."""
    disposition = av.stream.Disposition
    streams = [
        each for each in container.streams.video
        if not each.disposition & disposition.attached_pic and each.codec_context is not None
    ]  # fmt: skip
    if not streams:
        raise DataIntegrityError("holds no video")
    return min(streams, key=lambda each: (not each.disposition & disposition.default, each.index))


def _counted(container: InputContainer, stream: VideoStream) -> _Found:
    codec = stream.codec_context
    stream.thread_type, codec.thread_count = "NONE", 1
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    frames, whole, sizes = 0, True, set[tuple[int, int]]()
    for packet in container.demux(stream):
        if packet.is_corrupt:  # the demuxer's word for one that the file ends in; decoders may mend it in silence
            whole = False
            break
        for frame in packet.decode():
            frames += 1
            sizes.add((frame.height, frame.width))
    return _Found(frames, stream.frames, whole, frozenset(sizes), float(stream.average_rate or 0),
                  f"{codec.name} {codec.pix_fmt}")  # fmt: skip
