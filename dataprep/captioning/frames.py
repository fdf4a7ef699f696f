"""The pictures of a clip that a model is shown: JPEG, spread over the clip, inside its black bars."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataprep.media.container import Limits
from dataprep.media.decode import Backend, open_reader
from dataprep.media.geometry import Box, Frame, crop, resize
from dataprep.media.images import read_image
from dataprep.media.location import MediaFile
from dataprep.signals.clip import spread

_QUALITY = 85


@dataclass(frozen=True)
class FramesTask:
    """`width`: displayed pixels of the whole picture, which `box` (x0, y0, x1, y1) is in. `side`: longest side."""

    media: MediaFile
    is_video: bool
    first_frame: int
    frames: int
    width: int
    box: Box
    count: int
    side: int
    decoder: Backend
    deinterlace: bool
    limits: Limits


def frames_of(task: FramesTask) -> list[bytes]:
    """JPEG files in order of time. Raises ItemError for every reason of the decoders."""
    path = task.media.local()
    if not task.is_video:
        return [_jpeg(_framed(read_image(path, task.limits), task))]
    wanted = (task.first_frame + spread(task.frames, task.count)).tolist()
    # Decoded so large that the crop alone is still of the wanted size.
    share = max(task.box.width, task.box.height) / max(task.width, task.box.y1)
    decoded = round(task.side / min(1.0, max(share, 0.25)))
    shown = open_reader(path, task.decoder).frames(wanted, decoded, deinterlace=task.deinterlace)
    return [_jpeg(_framed(frame, task)) for frame in shown]


def _framed(picture: Frame, task: FramesTask) -> Frame:
    scale = picture.shape[1] / task.width
    x0, y0 = int(task.box.x0 * scale), int(task.box.y0 * scale)
    x1, y1 = min(picture.shape[1], round(task.box.x1 * scale)), min(picture.shape[0], round(task.box.y1 * scale))
    inside = crop(picture, Box(x0, y0, max(x0 + 1, x1), max(y0 + 1, y1)))
    height, width = inside.shape[:2]
    shrink = min(1.0, task.side / max(height, width))
    return resize(inside, max(1, round(width * shrink)), max(1, round(height * shrink)))


def _jpeg(picture: Frame) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()
