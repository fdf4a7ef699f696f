"""Decoded pictures of a stream past its damage, each known to be sound or not.

Damage spreads: a picture that fails takes with it everything decoded after it up to the next key frame, and the
pictures shown before that key frame that refer back. Those count as damaged even where a decoder would conceal it.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dataprep.media.container import decoder_of

_LATE_CODEC = "hevc"
_REMEMBERED = 4096  # packets whose place in decoding order is kept


class Pictures:
    """Decoder frames in the order of the decoder; bad packets are skipped and noted by their place."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container, self._stream = container, stream
        self._decoder: CodecContext = decoder_of(stream)
        self._group = self._serial = 0
        self._key_pts: int | None = None
        self._places: dict[int, tuple[int, int, bool]] = {}  # pts: group of pictures, place, refers back
        self._spoiled: dict[int, int] = {}  # group: first bad place
        self._spoiled_back: set[int] = set()  # groups whose pictures before the key frame are bad
        self.failed = False  # since the last key frame, for streams without times

    def seek(self, pts: int) -> bool:
        """Go to the key frame at or before `pts`; False, and no move, where the container cannot."""
        try:
            self._container.seek(pts, stream=self._stream, backward=True, any_frame=False)
        except av.error.FFmpegError:
            return False
        if self._decoder is not self._stream.codec_context:
            self._decoder.flush_buffers()
        self._key_pts = None
        return True

    def __iter__(self) -> Iterator[VideoFrame]:
        """Frames one packet late: HEVC tells of a wrong picture hash when it is given the next packet."""
        waiting: list[VideoFrame] = []
        for packet in self._packets():
            late, waiting = waiting, self._decode(packet)
            yield from late
        yield from waiting

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self._spoil(self._group, self._serial)
                return  # the container itself is broken from here on
            if packet is None:
                return
            yield packet

    def _decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        before = (self._group, self._serial)
        place = self._note(packet) if packet.size else None
        try:
            frames = self._decoder.decode(packet)  # type: ignore[attr-defined]
        except av.error.FFmpegError:
            frames = []
            self._spoil(*(place or before))
            if self._stream.codec_context.name == _LATE_CODEC:
                self._spoil(*before)
        else:
            if place is not None and packet.is_corrupt:
                self._spoil(*place)
        return frames  # type: ignore[no-any-return]

    def _note(self, packet: Packet[VideoStream]) -> tuple[int, int, bool]:
        self._serial += 1
        if packet.is_keyframe:
            self._group += 1
            self._key_pts = packet.pts
        refers_back = packet.pts is not None and self._key_pts is not None and packet.pts < self._key_pts
        if packet.pts is not None:
            self._places[packet.pts] = (self._group, self._serial, refers_back)
        if len(self._places) > 2 * _REMEMBERED:
            limit = self._serial - _REMEMBERED
            self._places = {pts: place for pts, place in self._places.items() if place[1] > limit}
        return self._group, self._serial, refers_back

    def _spoil(self, group: int, serial: int, refers_back: bool = False) -> None:
        self.failed = True
        if refers_back:  # nothing after the key frame needs it
            self._spoiled_back.add(group)
        else:
            self._spoiled[group] = min(serial, self._spoiled.get(group, serial))

    def is_entry(self, frame: VideoFrame) -> bool:
        """Whether decoding can begin at this frame; the flag in the container may lie, the decoder's does not."""
        own = self._decoder is self._stream.codec_context  # the alpha decoders set no flag
        return not frame.is_corrupt and (frame.key_frame or not own)

    def miss(self, pts: int) -> None:
        """A picture that should have come and did not."""
        if pts in self._places:
            self._spoil(*self._places[pts])

    def is_damaged(self, frame: VideoFrame) -> bool:
        place = self._places.get(frame.pts) if frame.pts is not None else None
        if place is None:
            return bool(frame.is_corrupt)
        group, serial, refers_back = place
        if frame.is_corrupt:
            self._spoil(group, serial, refers_back)
        if refers_back:
            return group in self._spoiled_back or group - 1 in self._spoiled
        return self._spoiled.get(group, serial + 1) <= serial


def pictures(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All decoder frames in order, damaged ones included."""
    return iter(Pictures(container, stream))
