"""The decord backend, selectable because the stated stack names it; only for use inside killable children.

decord guesses frame counts for edit lists, ignores sample aspect ratios, and may spin for ever: its count is
compared with the packet index, aspect ratios are handled here, and the engine's time limit ends the spinning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataprep.media.geometry import Frame, resize
from dataprep.media.index import frame_index
from dataprep.media.reader import Size, display
from dataprep.quarantine import ItemError, Reason

_BATCH = 16


class DecordReader:
    def __init__(self, path: Path) -> None:
        self.path, self.index, self.display = path, frame_index(path), display(path)
        self.interlaced = False  # decord does not say

    def frames(self, wanted: Sequence[int], size: Size = None) -> Iterator[Frame]:
        import decord

        width, height = self.display.sized(size)
        try:
            video = decord.VideoReader(str(self.path.absolute()), ctx=decord.cpu(0), num_threads=1)
            if len(video) != self.index.frames:
                raise ItemError(
                    Reason.UNSUPPORTED, f"decord counts {len(video)} frames, the file has {self.index.frames}"
                )
            for start in range(0, len(wanted), _BATCH):
                for frame in video.get_batch(list(wanted[start : start + _BATCH])).asnumpy():
                    yield resize(frame, width, height)  # decord has turned it already
        except decord.DECORDError as error:
            raise ItemError(Reason.DECODE_ERROR, f"decord: {str(error).strip().splitlines()[-1]}") from None
