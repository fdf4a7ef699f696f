"""Opening untrusted video files: what is refused before a demuxer starts, and typed reasons for what fails.

The file's own claims (frame count, duration, size) are never believed; see `index` for what is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.codec.context import CodecContext
from av.container import InputContainer
from av.video.format import VideoFormat
from av.video.stream import VideoStream

from dataprep.media.layout import ISO_BOXES, iso_boxes
from dataprep.quarantine import ItemError, Reason

_SNIFF_BYTES = 4096
_TEXT_BYTES = frozenset(range(0x20, 0x7F)) | {0x09, 0x0A, 0x0C, 0x0D} | frozenset(range(0x80, 0x100))
# A picture with broken data fails instead of being mended in silence, and so does one whose hash is another (HEVC may
# carry hashes; other codecs have nothing to compare).
_CHECKED = {"err_detect": "crccheck+explode"}
_CHECKED_CODECS = frozenset(("hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp9"))
# The H.264 decoder would take a jump to an open group of pictures for damage.
_CHECKED_WHEN_CLOSED = frozenset(("h264",))
# dav1d compares the bits after a tile's last symbol (AV1 specification, 8.2.4) only then.
_STRICT, _STRICT_CODECS = {"strict": "strict"}, frozenset(("libdav1d",))
# FFmpeg's own VP8 and VP9 decoders drop the alpha plane, and read on past the end of damaged data without a word;
# those of libvpx refuse such a packet and all that depends on it, at the same speed and with the same pixels.
_CAREFUL_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


MAX_PIXELS = 8192 * 4352


class Limits(NamedTuple):
    """Bounds on what one file may make us do; beyond them it is quarantined as `too_large`."""

    max_pixels: int = MAX_PIXELS  # of one frame
    max_frames: int = 2_000_000


def check_bytes(path: Path) -> None:
    """Refuse what cannot be media before any decoder reads it: a missing or empty file, text, HTML."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_SNIFF_BYTES)
    except FileNotFoundError:
        raise ItemError(Reason.MISSING_FILE, "listed, but not there") from None
    except OSError as error:
        raise ItemError(Reason.MISSING_FILE, f"cannot be read: {error.strerror}") from None
    if not head:
        raise ItemError(Reason.EMPTY, "zero bytes")
    if _is_text(head):
        raise ItemError(Reason.NOT_MEDIA, f"text, beginning with {head[:40]!r}")


def _is_text(head: bytes) -> bool:
    # Text demuxers (playlists, subtitles, `concat`) could also open other files: they never get to see text.
    if not _TEXT_BYTES.issuperset(head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character cut at the end of what was read
    return True


def _open_failure(path: Path, error: Exception) -> ItemError:
    boxes, cut = iso_boxes(path)
    if boxes and boxes[0] in ISO_BOXES:
        if b"moov" not in boxes or (cut and boxes[-1] == b"moov"):
            return ItemError(Reason.NO_INDEX, "MP4 without its whole moov box: the end of the file is missing")
        if cut:
            return ItemError(Reason.TRUNCATED, "MP4 whose moov box is there and whose pictures are not")
    return ItemError(Reason.NOT_MEDIA, f"no demuxer reads it: {type(error).__name__}")


@contextlib.contextmanager
def open_video(
    path: Path, max_pixels: int = MAX_PIXELS, *, closed: bool = False, edited: bool = True, strict: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its main video stream, single-threaded; a frame of more than `max_pixels` fails to decode.

    `closed`: no picture refers to one before the last key frame, so that whatever does not decode is damage.
    `edited`: as the file's edit list says; else all that is in it.
    `strict`: the decoder holds the stream to rules of its format that are of no use to decoding.

    Raises ItemError: empty, not_media, no_index, no_video, missing_file.
    """
    check_bytes(path)
    try:
        # `file:` keeps a name like `http:x` or `-i` from meaning anything else.
        options = {"protocol_whitelist": "file"} | ({} if edited else {"ignore_editlist": "1"})
        container = av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise _open_failure(path, error) from None
    with container:
        stream = main_stream(container)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        codecs = _CHECKED_CODECS | _CHECKED_WHEN_CLOSED if closed else _CHECKED_CODECS
        checked = _CHECKED if stream.codec_context.name in codecs else {}
        if strict and stream.codec_context.name in _STRICT_CODECS:
            checked = _STRICT
        stream.codec_context.options = {**checked, "max_pixels": str(max_pixels)}
        yield container, stream


def main_stream(container: InputContainer) -> VideoStream:
    """Default disposition first, then the largest picture, then the first; cover art does not count."""
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached and s.codec_context is not None]
    if not streams:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams}))
        raise ItemError(Reason.NO_VIDEO, f"streams: {kinds or 'none'}")
    default = av.stream.Disposition.default

    def preference(stream: Any) -> tuple[bool, int, int]:
        return (not stream.disposition & default, -stream.width * stream.height, stream.index)

    return min(streams, key=preference)


def has_alpha_layer(stream: VideoStream) -> bool:
    """Whether transparency comes as a second layer beside the stream's own pictures (WebM)."""
    return stream.codec_context.name in _CAREFUL_DECODERS and stream.metadata.get("alpha_mode") == "1"


def decoder_of(stream: VideoStream) -> CodecContext:
    """The decoder for a stream: its own, or one that also reads the alpha layer and does not pass over damage."""
    context = stream.codec_context
    name = _CAREFUL_DECODERS.get(context.name)
    if name is None or not _is_eight_bit(context.pix_fmt):
        return context
    decoder = CodecContext.create(name, "r")
    decoder.extradata = context.extradata
    decoder.thread_count = 1
    decoder.options = dict(context.options)
    return decoder


def _is_eight_bit(pixel_format: str | None) -> bool:
    return pixel_format is None or VideoFormat(pixel_format).components[0].bits == 8


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn decoder and demuxer faults inside the block into `decode_error`."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise ItemError(Reason.DECODE_ERROR, f"{what}: {error.strerror}") from None
