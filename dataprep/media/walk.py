"""Frames by number: by presentation time with jumps to key frames, or by counting where a file has no times."""

from __future__ import annotations

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dataprep.media.index import FrameIndex
from dataprep.media.pictures import Pictures
from dataprep.quarantine import ItemError, Reason

_SEEK_ATTEMPTS = 3


class Walk:
    """Frames by presentation time, jumping to a key frame where that saves decoding."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, index: FrameIndex, watched: bool = False
    ) -> None:
        self._index = index
        self._pictures = Pictures(container, stream, index.faults, keyed=len(index.keys) > 0, watched=watched)
        self._frames = iter(self._pictures)
        self._position: int | None = None  # pts of the last decoded frame
        self._held: VideoFrame | None = None  # decoded while landing, not yet passed

    def to(self, number: int) -> VideoFrame | None:
        """The frame, or None where it is damaged; numbers must increase."""
        target = int(self._index.pts[number])
        key = int(np.searchsorted(self._index.keys, target, side="right")) - 1
        reached = int(self._index.pts[0]) if self._position is None else self._position
        if key >= 0 and int(self._index.keys[key]) > reached:
            self._land(key)
        frame = self._advance(target)
        if frame is None:
            self._pictures.miss(target)
            return None
        return None if self._pictures.is_damaged(frame) else frame

    def _advance(self, target: int) -> VideoFrame | None:
        while True:
            frame, self._held = self._held or next(self._frames, None), None
            if frame is None:
                return None
            if frame.pts is None:
                continue
            self._position = frame.pts
            if frame.pts == target:
                return frame
            if frame.pts > target:
                self._held = frame
                return None

    def _land(self, key: int) -> None:
        """Continue decoding from key frame number `key`, from an earlier one where the seek is not exact, or from
        where decoding stands where the file cannot be sought.

        Raises ItemError `decode_error` when a file can be sought forwards only.
        """
        moved = False
        for earlier in range(key, max(-1, key - _SEEK_ATTEMPTS), -1):
            wanted = int(self._index.keys[earlier])
            if not self._pictures.seek(wanted):
                break
            moved = True
            self._frames = iter(self._pictures)
            # Pictures shown before the key frame may lack their references: they are passed over.
            for frame in self._frames:
                if frame.pts is not None and frame.pts >= wanted:
                    if frame.pts == wanted and self._pictures.is_entry(frame):
                        self._held, self._position = frame, wanted
                        return
                    break
        if not moved:
            return
        if not self._pictures.seek(int(self._index.keys[0])):
            raise ItemError(Reason.DECODE_ERROR, "the file cannot be sought backwards")
        self._frames, self._held = iter(self._pictures), None


class Count:
    """Frames by counting from the start, for files without usable times."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, index: FrameIndex, watched: bool = False
    ) -> None:
        self._pictures = Pictures(container, stream, index.faults, keyed=len(index.keys) > 0, watched=watched)
        self._frames = enumerate(self._pictures)

    def to(self, number: int) -> VideoFrame | None:
        """The frame, or None where it is damaged or decoding ends before it; numbers must increase."""
        for position, frame in self._frames:
            damaged = self._pictures.is_damaged(frame)
            if position == number:
                return None if damaged else frame
        return None
