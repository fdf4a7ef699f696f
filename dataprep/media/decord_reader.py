"""The decord backend, selectable because the stated stack names it; only for use inside killable children.

decord guesses frame counts for edit lists, ignores aspect ratios, colour tags, mirrors and transparency, and may
spin for ever: its count is compared with the packet index, what it cannot show is refused, and the engine's time
limit ends the spinning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataprep.media.colour import colour_of
from dataprep.media.container import has_alpha_layer, open_video
from dataprep.media.convert import has_alpha
from dataprep.media.geometry import Frame, Size, resize
from dataprep.media.index import frame_index
from dataprep.media.reader import Shown, display, first_frame
from dataprep.quarantine import ItemError, Reason

_BATCH = 16


class DecordReader:
    def __init__(self, path: Path) -> None:
        self.path, self.index, self.display = path, frame_index(path), display(path)
        frame, _ = first_frame(path)
        with open_video(path) as (_, stream):
            alpha = has_alpha(frame.format.name) or has_alpha_layer(stream)
        for needed, what in (
            (colour_of(frame).converted, "HDR or wide-gamut colour"),
            (alpha, "transparency"),
            (self.display.mirrored, "mirrored display matrix"),
            (self.index.partial, "file that was cut short"),
            (self.index.reordered, "file whose times are in the order of decoding"),
        ):
            if needed:
                raise ItemError(Reason.UNSUPPORTED, f"decord cannot show this {what}; pyav can")

    def frames(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Frame]:
        """Raises ItemError: decode_error; unsupported when decord counts other frames."""
        import decord

        if deinterlace:
            raise ItemError(Reason.UNSUPPORTED, "decord does not deinterlace; pyav does")
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

    def shown(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Shown]:
        """As `frames`: decord tells nothing of damage, fields, combs or blocks."""
        for number, frame in zip(wanted, self.frames(wanted, size, deinterlace=deinterlace), strict=True):
            yield Shown(number, frame, self.display)
