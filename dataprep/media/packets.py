"""What the packets of a video say of its frames, read without decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from av.packet import Packet
from av.video.stream import VideoStream

from dataprep.media.container import Limits, decoding, open_video
from dataprep.media.h264 import h264_prefix, is_bipredictive, is_idr
from dataprep.media.structure import structure_faults
from dataprep.quarantine import ItemError, Reason

_REORDERING = ("hevc", "mpeg4")  # codecs whose headers say whether pictures are shown in another order than decoded


@dataclass
class Packets:
    """In the order of decoding. `pts`, `ends` and `keys` (pts of key frames) are of packets that are shown;
    `first_turned`: the place of the first that the codec may show before an earlier one.
    """

    codec: str
    time_base: Fraction
    claimed: int  # frames, as the container says
    faults: tuple[int, ...]  # byte offsets at which the container contradicts itself
    pts: list[int | None] = field(default_factory=list)
    keys: list[int | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    discarded: int = 0  # before an edit list's start: decoded, never shown
    closed: bool = False  # H.264: every group of pictures can be decoded by itself
    first_turned: int | None = None

    @property
    def found(self) -> int:
        return len(self.pts) + self.discarded

    def add(self, packet: Packet[VideoStream], prefix: int) -> None:
        if self.codec == "h264":
            data = bytes(packet) if packet.is_keyframe or self.first_turned is None else b""
            if packet.is_keyframe:
                self.closed = self.closed and is_idr(data, prefix)
            if self.first_turned is None and is_bipredictive(data, prefix):
                self.first_turned = len(self.pts)
        if packet.is_discard:
            self.discarded += 1
            return
        self.pts.append(packet.pts)
        if packet.is_keyframe:
            self.keys.append(packet.pts)
        if packet.pts is not None and packet.duration:
            self.ends.append(packet.pts + packet.duration)


def read_packets(path: Path, limits: Limits, *, edited: bool = True) -> Packets:
    """`edited`: as of `open_video`. Raises ItemError: too_large, decode_error and those of `open_video`."""
    with open_video(path, limits.max_pixels, edited=edited) as (container, stream), decoding("reading packets"):
        if stream.width * stream.height > limits.max_pixels:
            raise ItemError(Reason.TOO_LARGE, f"{stream.width}x{stream.height} pixels")
        context = stream.codec_context
        time_base = Fraction(stream.time_base or Fraction(1, 1000))
        packets = Packets(context.name, time_base, stream.frames, structure_faults(path, stream.id))
        packets.closed = context.name == "h264"
        if context.name in _REORDERING and context.has_b_frames:
            packets.first_turned = 0
        prefix = h264_prefix(context.extradata)
        for packet in container.demux(stream):
            if packet.size:
                packets.add(packet, prefix)
            if len(packets.pts) > limits.max_frames:
                raise ItemError(Reason.TOO_LARGE, f"more than {limits.max_frames} frames")
        packets.claimed = stream.frames  # some containers know at their end
    return packets
