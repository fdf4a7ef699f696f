"""Probing a video: what its header claims beside what its packets and first frame show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dataprep.media.colour import Colour, colour_of
from dataprep.media.container import Limits, has_alpha_layer, open_video
from dataprep.media.convert import frame_display, has_alpha
from dataprep.media.geometry import Display
from dataprep.media.index import FrameIndex, frame_index
from dataprep.media.reader import first_frame

_MICROSECONDS = 1_000_000
_SAME_RATE = Fraction(1, 500)
_MISMATCH = 0.1  # share by which a claim may differ from the measurement before it is flagged
_VFR_GAP = 1.5


@dataclass(frozen=True)
class VideoFacts:
    """Measured unless named `claimed_`. Sizes are of the displayed picture (upright, square pixels).

    `transforms`: what every frame passes through on its way to pixels; `warnings`: what a person should know.
    """

    container: str
    codec: str
    pixel_format: str
    stream: int  # the one that is read, among `video_streams`
    video_streams: int
    width: int
    height: int
    rotation: int
    mirrored: bool
    skew: float  # degrees that the nearest quarter turn leaves over
    sample_aspect: float
    colour: dict[str, object]
    interlaced: bool  # the first frame's flag
    frames: int
    key_frames: int
    fps: float
    duration_us: int
    start_us: int  # presentation time of the first frame
    max_gap: float
    claimed_frames: int
    claimed_fps: float
    claimed_duration_us: int
    claimed_width: int
    claimed_height: int
    transforms: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "transforms": list(self.transforms), "warnings": list(self.warnings)}


def probe_video(path: Path, limits: Limits = Limits()) -> VideoFacts:  # noqa: B008 - immutable
    """Raises ItemError with the reason why the file is no usable video."""
    index = frame_index(path, limits)
    frame, aspect = first_frame(path)
    shown, colour = frame_display(frame, aspect), colour_of(frame)
    with open_video(path, limits.max_pixels) as (container, stream):
        claims = _Claims.of(container, stream)
        alpha = has_alpha(frame.format.name)
        dropped = has_alpha_layer(stream) and not alpha
        number, streams = stream.index, len(container.streams.video)
        name, codec = container.format.name, stream.codec_context.name
    duration = index.microseconds(index.frames)
    return VideoFacts(
        container=name,
        codec=codec,
        pixel_format=frame.format.name,
        stream=number,
        video_streams=streams,
        width=shown.width,
        height=shown.height,
        rotation=shown.rotation,
        mirrored=shown.mirrored,
        skew=shown.skew,
        sample_aspect=float(shown.sample_aspect),
        colour=colour.as_json(),
        interlaced=bool(frame.interlaced_frame),
        frames=index.frames,
        key_frames=len(index.keys),
        fps=float(usual_rate(index, claims.rate)),
        duration_us=duration,
        start_us=round(int(index.pts[0]) * index.time_base * _MICROSECONDS),
        max_gap=round(index.max_gap, 3),
        claimed_frames=claims.frames,
        claimed_fps=float(claims.rate),
        claimed_duration_us=claims.duration_us,
        claimed_width=claims.width,
        claimed_height=claims.height,
        transforms=_transforms(shown, colour, alpha, frame.format.is_rgb),
        warnings=_warnings(index, shown, colour, claims, frame, (alpha, dropped), streams),
    )


@dataclass(frozen=True)
class _Claims:
    """What the header says."""

    frames: int
    rate: Fraction
    duration_us: int
    width: int
    height: int

    @staticmethod
    def of(container: InputContainer, stream: VideoStream) -> _Claims:
        # FFmpeg counts the duration in microseconds.
        return _Claims(
            stream.frames, Fraction(stream.average_rate or 0), container.duration or 0, stream.width, stream.height
        )


def usual_rate(index: FrameIndex, claimed: Fraction) -> Fraction:
    """The measured rate; the claimed one where they differ only by the rounding of time stamps."""
    measured = index.fps
    return claimed if claimed and abs(claimed - measured) <= _SAME_RATE * measured else measured


def _transforms(shown: Display, colour: Colour, alpha: bool, rgb: bool) -> tuple[str, ...]:
    made = list(colour.transforms)
    if colour.full_range and not rgb:
        made.append("full_range")
    if alpha:
        made.append("composited:#ffffff")
    if shown.mirrored:
        made.append("mirrored")
    if shown.rotation:
        made.append(f"rotated:{shown.rotation}")
    if shown.sample_aspect != 1:
        made.append(f"squared:{shown.sample_aspect.numerator}/{shown.sample_aspect.denominator}")
    return tuple(made)


def _warnings(
    index: FrameIndex, shown: Display, colour: Colour, claims: _Claims, frame: VideoFrame,
    alpha: tuple[bool, bool], streams: int,
) -> tuple[str, ...]:  # fmt: skip
    measured = index.microseconds(index.frames)
    wrong_time = claims.duration_us <= 0 or abs(claims.duration_us - measured) > max(
        _MISMATCH * measured, _MICROSECONDS / 2
    )
    wrong_size = (claims.width, claims.height) != (frame.width, frame.height)
    found = {
        "partial": index.partial,
        "damaged": len(index.faults) > 0,
        "meta_mismatch": wrong_time or wrong_size,
        "variable_rate": index.max_gap > _VFR_GAP,
        "rotated": shown.rotation != 0,
        "mirrored": shown.mirrored,
        "odd_rotation": abs(shown.skew) > 1,
        "non_square_pixels": shown.sample_aspect != 1,
        "colour_guessed": colour.guessed,
        "hdr": bool(colour.transforms),
        "alpha": alpha[0],
        "alpha_dropped": alpha[1],
        "several_streams": streams > 1,
        "time_jumps": len(index.breaks) > 0,
        "time_order": index.reordered,
        "not_seekable": not index.seekable,
    }
    return tuple(name for name, holds in found.items() if holds)
