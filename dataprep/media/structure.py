"""Where the container of a video file contradicts itself: damage that is known without any picture's checksum."""

from __future__ import annotations

from pathlib import Path

from dataprep.media import ebml, mpegts, riff

_HEAD_BYTES = 2048


def structure_faults(path: Path, stream_id: int | None = None) -> tuple[int, ...]:
    """Byte offsets of damage, increasing; of that which concerns stream `stream_id` where the container tells.

    Looks into Matroska, WebM, MPEG-TS and AVI. An MP4 is read by its sample tables, which a demuxer follows or fails.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return tuple(ebml.faults(path))
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return tuple(riff.faults(path))
    if mpegts.is_transport_stream(head):
        return tuple(mpegts.faults(path, stream_id))
    return ()
