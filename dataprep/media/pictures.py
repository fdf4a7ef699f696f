"""Decoded pictures of a stream past its damage, each known to be sound or not.

Damage spreads: a picture that fails takes with it everything decoded after it up to the next key frame, and the
pictures shown before that key frame that refer back. Those count as damaged even where a decoder would conceal it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
from av.codec.context import CodecContext, Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dataprep.media.container import decoder_of
from dataprep.media.witness import witness_of

_LATE_CODEC = "hevc"
_OWN_FAULTS = "mpegts"  # its demuxer takes a joint of two recordings for damage; `mpegts.faults` does not
_REMEMBERED = 4096  # packets whose place in decoding order is kept


class _Place(NamedTuple):
    """Where a picture stands in the order of decoding, which is not the order of showing."""

    group: int  # of pictures; 0 before the first key frame
    serial: int
    refers_back: bool  # shown before the key frame of its group, decoded after it
    key: bool = False


class Pictures:
    """Decoder frames in the order of the decoder; bad packets are skipped and noted by their place."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        faults: Sequence[int] = (),
        keyed: bool = False,
        watched: bool = False,
    ) -> None:
        """`faults`: byte offsets, increasing, of damage to the container; `keyed`: the stream has key frames, so that
        what comes before the first of them lacks its references; `watched`: with a second decoder where that helps.
        """
        self._container, self._stream = container, stream
        self._decoder: CodecContext = decoder_of(stream)
        self._witness = witness_of(stream, self._decoder) if watched else None
        self._decoder.flags |= Flags.copy_opaque
        self._faults = faults
        self._offset: int | None = None  # of the packet before
        self._last = _Place(0, 0, False)
        self._key_pts: int | None = None
        self._places: dict[int, _Place] = {}  # by pts, of packets
        self._spoiled: dict[int, int] = {0: 0} if keyed else {}  # group: first bad place
        self._spoiled_back: set[int] = set()  # groups whose pictures before the key frame are bad

    def seek(self, pts: int) -> bool:
        """Go to the key frame at or before `pts`; False, and no move, where the container cannot."""
        try:
            self._container.seek(pts, stream=self._stream, backward=True, any_frame=False)
        except av.error.FFmpegError:
            return False
        if self._decoder is not self._stream.codec_context:
            self._decoder.flush_buffers()
        if self._witness is not None:
            self._witness.flush()
        self._key_pts = self._offset = None
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
                self._spoil(self._last)
                return  # the container itself is broken from here on
            if packet is None:
                return
            yield packet

    def _decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        before = self._last
        self._cross(packet.pos if packet.size else None)
        if packet.size:
            packet.opaque = self._note(packet)
        try:
            frames = self._decoder.decode(packet)  # type: ignore[attr-defined]
        except av.error.FFmpegError:
            frames = []
            self._spoil(self._last)
            if self._stream.codec_context.name == _LATE_CODEC:
                self._spoil(before)
        else:
            if packet.size and packet.is_corrupt and self._container.format.name != _OWN_FAULTS:
                self._spoil(self._last)
            if packet.size and self._witness is not None and not self._witness.confirms(bytes(packet), frames):
                self._spoil(self._last)
        return frames  # type: ignore[no-any-return]

    def _cross(self, offset: int | None) -> None:
        """Go on to the packet at `offset`, or to the end: damage in between is that of the packet before."""
        before, self._offset = self._offset, offset
        if before is not None and self._faults:
            place = bisect_left(self._faults, before)
            if place < len(self._faults) and (offset is None or self._faults[place] < offset):
                self._spoil(self._last)
                self._spoil(self._last._replace(refers_back=False))  # packets after it may be lost with it

    def _note(self, packet: Packet[VideoStream]) -> _Place:
        group, serial = self._last.group, self._last.serial + 1
        if packet.is_keyframe:
            group += 1
            self._key_pts = packet.pts
        refers_back = packet.pts is not None and self._key_pts is not None and packet.pts < self._key_pts
        self._last = _Place(group, serial, refers_back, bool(packet.is_keyframe))
        if packet.pts is not None:
            self._places[packet.pts] = self._last
        if len(self._places) > 2 * _REMEMBERED:
            limit = serial - _REMEMBERED
            self._places = {pts: place for pts, place in self._places.items() if place.serial > limit}
        return self._last

    def _spoil(self, place: _Place) -> None:
        if place.refers_back:  # nothing after the key frame needs it
            self._spoiled_back.add(place.group)
        else:
            self._spoiled[place.group] = min(place.serial, self._spoiled.get(place.group, place.serial))

    def is_entry(self, frame: VideoFrame) -> bool:
        """Whether decoding can begin at this frame; the flag in the container may lie, the decoder's does not."""
        own = self._decoder is self._stream.codec_context  # the others set no flag
        return not frame.is_corrupt and (frame.key_frame or not own)

    def miss(self, pts: int) -> None:
        """A picture that should have come and did not."""
        if pts in self._places:
            self._spoil(self._places[pts])

    def is_damaged(self, frame: VideoFrame) -> bool:
        place = frame.opaque
        if not isinstance(place, _Place):
            return bool(frame.is_corrupt)
        if frame.is_corrupt:
            self._spoil(place)
        if self._spoiled.get(place.group, place.serial + 1) <= place.serial:
            return True
        return place.refers_back and (place.group in self._spoiled_back or place.group - 1 in self._spoiled)


def is_key(frame: VideoFrame) -> bool:
    """Whether a frame of `Pictures` begins a group of pictures; not all decoders tell."""
    return bool(frame.key_frame) or (isinstance(frame.opaque, _Place) and frame.opaque.key)


def pictures(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All decoder frames in order, damaged ones included."""
    return iter(Pictures(container, stream))
