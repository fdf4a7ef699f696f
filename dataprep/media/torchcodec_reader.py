"""The torchcodec backend, selectable; it reads through the FFmpeg that PyAV carries, or the system's.

torchcodec applies rotation, and ignores aspect ratios, mirrors, HDR and transparency: what it cannot show is refused.
Its frames' times are compared with the packet index, so that a frame is never taken for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dataprep.media.colour import colour_of
from dataprep.media.container import has_alpha_layer, open_video
from dataprep.media.convert import has_alpha
from dataprep.media.ffmpeg_link import link_ffmpeg
from dataprep.media.geometry import Frame, Size, resize
from dataprep.media.index import frame_index
from dataprep.media.reader import Shown, display, first_frame
from dataprep.quarantine import ItemError, Reason
from m4v.core.errors import ConfigError

_BATCH = 16


@cache
def _video_decoder() -> Any:
    """torchcodec's decoder class; raises ConfigError where it is not installed, or finds no FFmpeg it can use."""
    linked = link_ffmpeg()
    try:
        return import_module("torchcodec.decoders").VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(
            "torchcodec cannot be loaded",
            value=lines[0] if lines else type(error).__name__,
            where="decoder",
            next_step="install a torchcodec that fits this torch (0.12.0 for torch 2.13 on a CPU) and, where PyAV uses "
            f"no FFmpeg of its own ({len(linked)} libraries were lent), FFmpeg 4 to 8; or choose `pyav`",
        ) from None


class TorchcodecReader:
    def __init__(self, path: Path) -> None:
        _video_decoder()
        self.path, self.index, self.display = path, frame_index(path), display(path)
        frame, _ = first_frame(path)
        with open_video(path) as (_, stream):
            alpha = has_alpha(frame.format.name) or has_alpha_layer(stream)
            self._stream = stream.index
        for needed, what in (
            (colour_of(frame).converted, "HDR or wide-gamut colour"),
            (alpha, "transparency"),
            (self.display.mirrored, "mirrored display matrix"),
            (not self.index.seekable, "file without usable times"),
            (self.index.partial or bool(self.index.faults), "damaged file"),
        ):
            if needed:
                raise ItemError(Reason.UNSUPPORTED, f"torchcodec cannot show this {what}; pyav can")

    def frames(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Frame]:
        """Raises ItemError: decode_error; unsupported when torchcodec counts other frames."""
        if deinterlace:
            raise ItemError(Reason.UNSUPPORTED, "torchcodec does not deinterlace; pyav does")
        width, height = self.display.sized(size)
        try:
            decoder = _video_decoder()(
                str(self.path.absolute()), stream_index=self._stream, dimension_order="NHWC", num_ffmpeg_threads=1
            )
            if len(decoder) != self.index.frames:
                raise ItemError(
                    Reason.UNSUPPORTED, f"torchcodec counts {len(decoder)} frames, the file has {self.index.frames}"
                )
            for start in range(0, len(wanted), _BATCH):
                numbers = list(wanted[start : start + _BATCH])
                batch = decoder.get_frames_at(numbers)
                self._check_times(numbers, batch.pts_seconds.numpy())
                for frame in batch.data.numpy():
                    yield resize(frame, width, height)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ItemError(Reason.DECODE_ERROR, f"torchcodec: {str(error).strip().splitlines()[0]}") from None

    def _check_times(self, numbers: Sequence[int], seconds: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        begin = float(self.index.pts[0] * self.index.time_base)
        half = 0.5 / float(self.index.fps)
        for number, time in zip(numbers, seconds, strict=True):
            if abs(float(time) - begin - float(self.index.time(number))) > half:
                raise ItemError(Reason.UNSUPPORTED, f"torchcodec gives frame {number} the time {time:.3f} s")

    def shown(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Shown]:
        """As `frames`: torchcodec tells nothing of fields, combs or blocks, and fails at damage."""
        for number, frame in zip(wanted, self.frames(wanted, size, deinterlace=deinterlace), strict=True):
            yield Shown(number, frame, self.display)
