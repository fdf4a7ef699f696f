"""Probing a video: what its header claims beside what its packets and first frame show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from dataprep.media.container import Limits, open_video
from dataprep.media.geometry import Display
from dataprep.media.index import FrameIndex, frame_index
from dataprep.media.reader import display

_MICROSECONDS = 1_000_000
_SAME_RATE = Fraction(1, 500)
_MISMATCH = 0.1  # share by which a claim may differ from the measurement before it is flagged
_VFR_GAP = 1.5


@dataclass(frozen=True)
class VideoFacts:
    """Measured unless named `claimed_`. Sizes are of the displayed picture (turned, square pixels)."""

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    sample_aspect: float
    frames: int
    key_frames: int
    fps: float
    duration_us: int
    max_gap: float
    claimed_frames: int
    claimed_fps: float
    claimed_duration_us: int
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "warnings": list(self.warnings)}


def probe_video(path: Path, limits: Limits = Limits()) -> VideoFacts:  # noqa: B008 - immutable
    """Raises ItemError with the reason why the file is no usable video."""
    index = frame_index(path, limits)
    shown = display(path)
    with open_video(path) as (container, stream):
        claimed_rate = Fraction(stream.average_rate or 0)
        claimed_duration = container.duration or 0  # FFmpeg counts it in microseconds
        pixel_format = stream.codec_context.pix_fmt or "unknown"
        name, codec, claimed_frames = container.format.name, stream.codec_context.name, stream.frames
    duration = index.microseconds(index.frames)
    return VideoFacts(
        container=name,
        codec=codec,
        pixel_format=pixel_format,
        width=shown.width,
        height=shown.height,
        rotation=shown.rotation,
        sample_aspect=float(shown.sample_aspect),
        frames=index.frames,
        key_frames=len(index.keys),
        fps=float(usual_rate(index, claimed_rate)),
        duration_us=duration,
        max_gap=round(index.max_gap, 3),
        claimed_frames=claimed_frames,
        claimed_fps=float(claimed_rate),
        claimed_duration_us=claimed_duration,
        warnings=_warnings(index, shown, pixel_format, claimed_duration, duration),
    )


def usual_rate(index: FrameIndex, claimed: Fraction) -> Fraction:
    """The measured rate; the claimed one where they differ only by the rounding of time stamps."""
    measured = index.fps
    return claimed if claimed and abs(claimed - measured) <= _SAME_RATE * measured else measured


def _warnings(index: FrameIndex, shown: Display, pixel_format: str, claimed: int, measured: int) -> tuple[str, ...]:
    found = []
    if claimed <= 0 or abs(claimed - measured) > max(_MISMATCH * measured, _MICROSECONDS / 2):
        found.append("meta_mismatch")
    if index.max_gap > _VFR_GAP:
        found.append("variable_rate")
    if shown.rotation:
        found.append("rotated")
    if shown.sample_aspect != 1:
        found.append("non_square_pixels")
    if pixel_format.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap")):
        found.append("alpha_dropped")
    if not index.seekable:
        found.append("not_seekable")
    return tuple(found)
