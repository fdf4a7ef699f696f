"""The measuring functions that engines run on files: probe, one decoding pass of a segment, a clip's key frames.

Each takes one task and returns bytes; a file that cannot be measured raises ItemError with its reason.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataprep.curation.items import pack
from dataprep.media.blocks import blockiness
from dataprep.media.container import Limits
from dataprep.media.decode import Backend, open_reader
from dataprep.media.geometry import Box, Frame, crop, resize
from dataprep.media.images import read_still
from dataprep.media.index import FrameIndex
from dataprep.media.listed_crop import WHOLE, ListedCrop, Shares, joint, shares
from dataprep.media.location import MediaFile
from dataprep.media.probe import probe_video
from dataprep.media.reader import Shown, sound
from dataprep.shots.detector import CONTEXT, SHOT_HEIGHT, SHOT_WIDTH, ShotDetector, open_detector, shot_frame
from dataprep.signals.brisque import brisque
from dataprep.signals.clip import clip_scores, content_box, content_digest, sampled_hashes, spread
from dataprep.signals.frames import FrameSignals
from dataprep.signals.frames import pack as pack_columns
from dataprep.signals.nsfw import nsfw_probability
from dataprep.signals.text import text_area

MODEL_SIDE = 960  # long side of the key frames that models see
_STRIP_FRAMES, _STRIP_HEIGHT, _STRIP_QUALITY = 4, 108, 82
_ROUND = 4
_BLANK = np.zeros((SHOT_HEIGHT, SHOT_WIDTH, 3), np.uint8)


@dataclass(frozen=True)
class ProbeTask:
    media: MediaFile
    limits: Limits


@dataclass(frozen=True)
class SegmentTask:
    """Frames [start, end) of a video; `start` is a multiple of the detectors' step.

    `crop_bars`: measure inside black bars; `part`: x0, y0, x1, y1 of the collection's crop, as shares of the sides.
    """

    media: MediaFile
    start: int
    end: int
    decoder: Backend
    detector: str
    analysis_side: int
    motion_stride: int
    crop_bars: bool = True
    part: Shares = WHOLE


@dataclass(frozen=True)
class ClipTask:
    """Key frames of [first_frame, first_frame + frames) inside `box`. `models`: which of text, nsfw, quality."""

    media: MediaFile
    first_frame: int
    frames: int
    box: Box
    decoder: Backend
    key_frames: int
    models: tuple[bool, bool, bool]
    deinterlace: bool = False
    embed: bool = False


@dataclass(frozen=True)
class ImageTask:
    media: MediaFile
    limits: Limits
    analysis_side: int
    crop_bars: bool
    models: tuple[bool, bool, bool]
    embed: bool = False
    crop: ListedCrop | None = None


def probe(task: ProbeTask) -> bytes:
    """Facts of a video, after comparing its bytes with the listing."""
    path = task.media.local()
    task.media.check(path)
    return pack(probe_video(path, task.limits).as_json())


@cache
def _detector(name: str) -> ShotDetector:
    return open_detector(name)


def segment(task: SegmentTask) -> bytes:
    """Signal columns of a segment, with boundary probabilities and frame times, from one decoding pass.

    Columns beside the signals: `damaged` (not decodable rightly, or in doubt beside such a frame), `width` and `height`
    (displayed), `combed` and `blocky` (NaN where not looked at), `joint` (time does not go on from the frame before).
    """
    reader = open_reader(task.media.local(), task.decoder)
    before = max(0, task.start - CONTEXT)
    after = min(reader.index.frames, task.end + CONTEXT)
    signals = FrameSignals(task.motion_stride, crop_bars=task.crop_bars, part=task.part)
    small: list[NDArray[np.uint8]] = []
    own: list[Shown] = []
    for shown in reader.shown(range(before, after), task.analysis_side):
        small.append(_BLANK if shown.picture is None else shot_frame(shown.picture))
        if shown.number < task.start:
            signals.skip(shown.picture)
        if task.start <= shown.number < task.end:
            own.append(shown._replace(picture=None if shown.picture is None else _BLANK))  # pixels are not kept
            signals.blank() if shown.picture is None else signals.add(shown.number, shown.picture, shown.interlaced)
    columns = signals.columns()
    columns["boundary"] = _detector(task.detector).boundaries(
        np.stack(small), task.start - before, task.end - task.start
    )
    columns |= _times(reader.index, task.start, task.end)
    missing = np.array([s.picture is None for s in own], dtype=np.bool_)
    columns["damaged"] = reader.index.doubtful(missing, task.start)
    columns["combed"] = np.array([s.combed for s in own], dtype=np.float32)
    columns["blocky"] = np.array([s.blocky for s in own], dtype=np.float32)
    columns["joint"] = np.isin(np.arange(task.start, task.end), np.array(reader.index.breaks, dtype=np.int64))
    columns["width"] = np.array([s.display.width for s in own], dtype=np.int32)
    columns["height"] = np.array([s.display.height for s in own], dtype=np.int32)
    return pack_columns(columns)


def _times(index: FrameIndex, start: int, end: int) -> dict[str, NDArray[np.generic]]:
    edges = np.array([index.microseconds(k) for k in range(start, end + 1)], dtype=np.int64)
    usual = max(1.0, float(np.median(np.diff(index.pts)))) if index.frames > 1 else 1.0
    pts = index.pts[start : end + 1].astype(np.float64)
    gaps = np.diff(np.append(pts, float(index.end_pts)) if end == index.frames else pts) / usual
    return {"start_us": edges[:-1], "end_us": edges[1:], "gap": gaps.astype(np.float32)}


def clip(task: ClipTask) -> bytes:
    """Model scores of a clip's key frames, and its contact strip as JPEG."""
    reader = open_reader(task.media.local(), task.decoder)
    keys = (task.first_frame + spread(task.frames, task.key_frames)).tolist()
    shown = (task.first_frame + spread(task.frames, _STRIP_FRAMES)).tolist()
    wanted = sorted({*keys, *shown})
    frames = sound(reader.shown(wanted, MODEL_SIDE, deinterlace=task.deinterlace))
    pictures = {
        number: _inside(frame, task.box, display.width) for number, (display, frame) in zip(wanted, frames, strict=True)
    }
    chosen = [pictures[k] for k in keys]
    facts: dict[str, object] = {
        "scores": model_scores(chosen, task.models),
        "embedding": _embedding(chosen, task.embed),
    }
    return pack(facts, strip([pictures[k] for k in shown]))


def _inside(frame: Frame, box: Box, display_width: int) -> Frame:
    scale = frame.shape[1] / display_width
    x0, y0 = int(box.x0 * scale), int(box.y0 * scale)
    x1, y1 = min(frame.shape[1], round(box.x1 * scale)), min(frame.shape[0], round(box.y1 * scale))
    return np.ascontiguousarray(crop(frame, Box(x0, y0, max(x0 + 1, x1), max(y0 + 1, y1))))


def image(task: ImageTask) -> bytes:
    """Everything about a still image: size, signals, model scores, hashes, and its preview."""
    path = task.media.local()
    task.media.check(path)
    picture, made = read_still(path, task.limits)
    height, width = picture.shape[:2]
    seen = whole = Box(0, 0, width, height)
    if task.crop is not None:
        seen = task.crop.within(width, height)
    signals = FrameSignals(motion_stride=1, crop_bars=task.crop_bars, part=shares(seen, width, height))
    signals.add(0, _shrunk(picture, task.analysis_side), interlaced=False)
    columns = signals.columns() | {"blocky": np.array([blockiness(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))])}
    box = joint(seen, content_box(columns, width, height) if task.crop_bars else whole)
    inside = crop(picture, box)
    scores: dict[str, object] = {**clip_scores(columns, 1.0, box, seen.width, seen.height), "interlaced": None}
    scores |= model_scores([_shrunk(inside, MODEL_SIDE)], task.models)
    facts = {
        "width": width,
        "height": height,
        "box": list(box),
        "scores": scores,
        "phash": sampled_hashes(columns),
        "content": content_digest(columns),
        "transforms": list(made),
        "embedding": _embedding([_shrunk(inside, MODEL_SIDE)], task.embed),
    }
    return pack(facts, strip([inside]))


def _embedding(pictures: list[Frame], wanted: bool) -> str:
    """As hexadecimal digits; empty where it is off, which loads no torch."""
    if not wanted:
        return ""
    from dataprep.signals.embedding import embedding

    return embedding(pictures).hex()


def _shrunk(frame: Frame, long_side: int) -> Frame:
    height, width = frame.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    return resize(frame, max(1, round(width * scale)), max(1, round(height * scale)))


def model_scores(pictures: list[Frame], models: tuple[bool, bool, bool]) -> dict[str, float | None]:
    """Largest text area, mean NSFW probability, mean BRISQUE; None for what is off or not measurable.

    Text may be laid over a part of the clip only. Single frames of clean cartoons reach .9 in open_nsfw, so
    one frame does not decide there.
    """
    text, nsfw, quality = models
    qualities = [q for p in pictures if (q := brisque(p)) is not None] if quality else []
    scores = {
        "text": max(text_area(p) for p in pictures) if text else None,
        "nsfw": float(np.mean([nsfw_probability(p) for p in pictures])) if nsfw else None,
        "brisque": float(np.mean(qualities)) if qualities else None,
    }
    return {name: None if value is None else round(value, _ROUND) for name, value in scores.items()}


def strip(pictures: list[Frame]) -> bytes:
    """Contact strip: pictures of one height side by side, JPEG."""
    row: list[Any] = []
    for picture in pictures:
        height, width = picture.shape[:2]
        row.append(
            resize(picture, max(1, min(4 * _STRIP_HEIGHT, round(width * _STRIP_HEIGHT / height))), _STRIP_HEIGHT)
        )
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(row, axis=1)).save(buffer, format="JPEG", quality=_STRIP_QUALITY)
    return buffer.getvalue()
