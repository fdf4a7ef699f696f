"""The frame index of a video: presentation times and key frames, read from packets without decoding.

Frame numbers everywhere in the product are places in this order. Time 0 is the first presented frame, so
edit lists and non-zero starts are honoured, and variable frame rates keep their true times.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataprep.media.container import Limits, decoding, open_video
from dataprep.media.layout import is_cut_short
from dataprep.media.packets import read_packets
from dataprep.media.pictures import is_key, pictures
from dataprep.quarantine import ItemError, Reason

_MICROSECONDS = 1_000_000
_TRIED_FRAMES = 64  # after the first B picture: more than any decoder holds back


class FrameIndex(NamedTuple):
    """`pts` int64 (frames,), increasing, in `time_base`; `keys` int64: pts of key frames, increasing.

    `seekable` is False where packets carry no usable times: frames are then found by counting from the start.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    time_base: Fraction
    end_pts: int  # end of the last frame
    seekable: bool
    partial: bool = False  # the file was cut short: these are its whole groups of pictures
    breaks: tuple[int, ...] = ()  # frames whose time does not come after that of the one before: joints of a file
    closed: bool = False  # H.264: every group of pictures can be decoded by itself
    faults: tuple[int, ...] = ()  # byte offsets at which the container contradicts itself
    reordered: bool = False  # the packets' times are those of decoding: pictures come in the order of the decoder

    @property
    def frames(self) -> int:
        return len(self.pts)

    @property
    def fps(self) -> Fraction:
        """Measured mean rate."""
        if self.frames < 2:
            return 1 / (self.time_base * max(1, self.end_pts - int(self.pts[0])))
        return Fraction(self.frames - 1) / (self.time_base * int(self.pts[-1] - self.pts[0]))

    def doubtful(self, damaged: NDArray[np.bool_], first: int = 0) -> NDArray[np.bool_]:
        """Frames `first`, first + 1, … that are damaged or share a group of pictures with one that is.

        Few codecs have checksums: most damage shows only some pictures after the one that it hit.
        """
        groups = np.searchsorted(self.keys, self.pts[first : first + len(damaged)], side="right")
        return np.asarray(damaged | np.isin(groups, groups[damaged]), dtype=np.bool_)

    def time(self, frame: int) -> Fraction:
        """Presentation time in seconds of a frame; of `frames` itself, the end of the video."""
        pts = self.end_pts if frame == self.frames else int(self.pts[frame])
        return (pts - int(self.pts[0])) * self.time_base

    def microseconds(self, frame: int) -> int:
        return round(self.time(frame) * _MICROSECONDS)

    @property
    def max_gap(self) -> float:
        """Longest distance of two frames, in units of the median distance: 1.0 for a constant rate."""
        gaps = np.diff(self.pts)
        return float(gaps.max() / np.median(gaps)) if len(gaps) else 1.0


def frame_index(path: Path, limits: Limits = Limits()) -> FrameIndex:  # noqa: B008 - immutable
    """The index of a file, remembered for as long as the file does not change.

    Raises ItemError: truncated, too_large, decode_error, too_short (no frame at all) and those of `open_video`.
    """
    try:
        stat = path.stat()
    except OSError:
        raise ItemError(Reason.MISSING_FILE, "listed, but not there") from None
    return _cached(path, stat.st_size, stat.st_mtime_ns, limits)


@lru_cache(maxsize=32)
def _cached(path: Path, size_bytes: int, mtime_ns: int, limits: Limits) -> FrameIndex:
    return _from_packets(path, limits)


def _from_packets(path: Path, limits: Limits) -> FrameIndex:
    packets = read_packets(path, limits)
    pts, keys, ends = packets.pts, packets.keys, packets.ends
    whole = packets.claimed <= packets.found and not is_cut_short(path)
    if not whole:
        found = f"{packets.found} of {packets.claimed or 'more'} claimed frames"
        pts, keys, ends = _whole_groups(pts, keys, ends, found)
    if not pts:
        raise ItemError(Reason.TOO_SHORT, "no frame")
    if None in pts or len(set(pts)) != len(pts):
        return _from_frames(path, packets.time_base, limits)._replace(closed=packets.closed, faults=packets.faults)
    decoding_order = np.array(pts, dtype=np.int64)
    ordered = np.sort(decoding_order)
    ordered_keys = np.sort(np.array(keys, dtype=np.int64))
    end = max([*ends, int(ordered[-1]) + (_usual_gap(ordered) if len(ordered) > 1 else 1)])
    index = FrameIndex(
        ordered, ordered_keys, packets.time_base, end, len(ordered_keys) > 0, not whole, (), packets.closed,
        packets.faults,
    )  # fmt: skip
    if whole and packets.first_turned is not None and np.array_equal(decoding_order, ordered):
        return _reordered(path, index, limits) or index
    return index


def _reordered(path: Path, index: FrameIndex, limits: Limits) -> FrameIndex | None:
    """The index of a file whose packets have the times of decoding; None where they have those of showing.

    An edit list that was made for other times would cut out single pictures: it is left aside.
    """
    packets = read_packets(path, limits, edited=False)
    times = np.array([p for p in packets.pts if p is not None], dtype=np.int64)
    if packets.first_turned is None or len(times) != packets.found or not (np.diff(times) > 0).all():
        return None
    places = _shown_order(path, times, packets.first_turned + _TRIED_FRAMES)
    if places is None:
        return None
    end = max([*packets.ends, int(times[-1]) + _usual_gap(times)])
    # Frames can be found by counting only.
    return index._replace(pts=times, keys=times[places], end_pts=end, seekable=False, reordered=True)


def _shown_order(path: Path, times: NDArray[np.int64], tried: int) -> NDArray[np.int64] | None:
    """Places of the key frames among the pictures, where these come out of the decoder in another order than
    `times`, those of the packets; None where the orders agree, of `tried` pictures, or pictures are missing.

    Some muxers write the times of decoding as those of showing. A decoder knows the order of pictures from the
    stream itself, and it is right.
    """
    found: list[int] = []
    keys = [0]
    turned = False
    with open_video(path, edited=False) as (container, stream), decoding("looking for the order of frames"):
        for frame in pictures(container, stream):
            if frame.pts is None:
                return None
            if is_key(frame):
                keys.append(len(found))
            turned = turned or (len(found) > 0 and frame.pts < found[-1])
            found.append(frame.pts)
            if not turned and len(found) > tried:
                return None
    return np.unique(keys) if turned and np.array_equal(np.sort(found), times) else None


def _whole_groups(
    pts: list[int | None], keys: list[int | None], ends: list[int], found: str
) -> tuple[list[int | None], list[int | None], list[int]]:
    """What is before the last key frame of a file that was cut short: the group of pictures at the cut is lost.

    Raises ItemError `truncated` when no group is whole.
    """
    times = [k for k in keys if k is not None]
    last = max(times, default=None)
    if last is None or len(times) < 2 or None in pts:
        raise ItemError(Reason.TRUNCATED, f"{found} are in the file, and no whole group of pictures")
    kept: list[int | None] = [p for p in pts if p is not None and p < last]
    return kept, [k for k in keys if k is not None and k < last], [min(e, last) for e in ends]


def _from_frames(path: Path, time_base: Fraction, limits: Limits) -> FrameIndex:
    """For containers without usable packet times (old AVI): decode once and count."""
    pts: list[int | None] = []
    keys = [0]
    with open_video(path, limits.max_pixels) as (container, stream), decoding("counting frames"):
        rate = Fraction(stream.average_rate or 25)
        for frame in pictures(container, stream):
            if is_key(frame):
                keys.append(len(pts))
            pts.append(frame.pts)
            if len(pts) > limits.max_frames:
                raise ItemError(Reason.TOO_LARGE, f"more than {limits.max_frames} frames")
    if not pts:
        raise ItemError(Reason.DECODE_ERROR, "no packet decodes to a frame")
    known = [p for p in pts if p is not None]
    breaks: tuple[int, ...] = ()
    if len(known) == len(pts) and all(a < b for a, b in itertools.pairwise(known)):
        times = np.array(known, dtype=np.int64)
    else:
        times, time_base = np.arange(len(pts), dtype=np.int64), 1 / rate
        pairs = enumerate(itertools.pairwise(pts), start=1)
        breaks = tuple(k for k, (a, b) in pairs if a is not None and b is not None and b <= a)
    end = int(times[-1]) + (_usual_gap(times) if len(times) > 1 else 1)
    return FrameIndex(times, times[np.unique(keys)], time_base, end, seekable=False, breaks=breaks)


def _usual_gap(pts: NDArray[np.int64]) -> int:
    return max(1, int(np.median(np.diff(pts))))
