"""From listed files to candidate clips: probe, segments, shots, captions, key frames, all through item stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import numpy as np

from dataprep.curate_config import CurateConfig
from dataprep.curation import measure
from dataprep.curation.captions import captions_of
from dataprep.curation.items import Job, measure_all, step_digest, unpack
from dataprep.curation.poison import PoisonList
from dataprep.curation.record import MediaRecord, crop_of, record_of
from dataprep.curation.spans import Columns, candidate_spans
from dataprep.curation.table import Clip
from dataprep.engine import Engine
from dataprep.engines.limits import WorkLimits
from dataprep.media.container import Limits
from dataprep.media.geometry import Box
from dataprep.media.listed_crop import ListedCrop, crop_key, joint, part_of, shares_of, video_crop
from dataprep.media.location import MediaFile
from dataprep.quarantine import ItemError, ItemFailure, QuarantineLog, QuarantineRow, Reason
from dataprep.shots.detector import STEP
from dataprep.shots.scenes import Span
from dataprep.signals.clip import clip_scores, content_box, content_digest, sampled_hashes
from dataprep.signals.frames import unpack as unpack_columns
from dataprep.signals.phash import from_text
from dataprep.sources.listing import ListedFile
from dataprep.spool import Spool
from m4v.core.stage import StageContext

Measurement = Callable[[Any], bytes]
Tasks = Sequence[tuple[str, Any]]  # each with its key
SEGMENT_FRAMES = 20 * STEP
_DENSE_STRIDE = 4  # every fourth frame answers perceptual look-ups
_BATCH_FRAMES = 50_000  # measured together; bounds what is in memory at once


@dataclass(frozen=True)
class Entry:
    """A listed file with its source, and its place among all inputs."""

    source: str
    file: ListedFile
    media: MediaFile
    drawn: bool
    order: int
    animation: bool = False  # an image file of several pictures, read as a video

    def as_video(self) -> Entry:
        """An animation, to be read as a video."""
        return replace(self, file=replace(self.file, media="video"), animation=True)

    def quarantined(self, reason: str, detail: str, step: str) -> QuarantineRow:
        return QuarantineRow(self.source, self.file.source_id, self.file.path, str(reason), detail, step)


@dataclass(frozen=True)
class Video:
    """A probed video and the part of it, frames [first, end) and displayed pixels `crop` (None: all), to be used."""

    entry: Entry
    facts: dict[str, Any]
    first: int
    end: int
    crop: Box | None = None

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Aligned parts that cover [first, end): the same parts whatever range a recipe takes."""
        begin = self.first // SEGMENT_FRAMES * SEGMENT_FRAMES
        total = int(self.facts["frames"])
        return [(s, min(s + SEGMENT_FRAMES, total)) for s in range(begin, self.end, SEGMENT_FRAMES)]


class Measurer:
    """Runs the measuring steps on an engine; failures become quarantine rows."""

    def __init__(self, context: StageContext, config: CurateConfig, engine: Engine, quarantine: QuarantineLog) -> None:
        self._config, self._engine, self._quarantine = config, engine, quarantine
        bounds = config.limits
        self._limits = Limits(bounds.max_pixels, bounds.max_frames)
        memory = None if bounds.item_memory_mib is None else bounds.item_memory_mib << 20
        self._work = WorkLimits(bounds.item_timeout_s, bounds.item_cpu_s, memory)
        self._poison = PoisonList(context.items("curate-poison", step_digest({})).uri, self._work, bounds.poison_after)
        self.animations = Spool[Entry]()  # image files of several pictures, to be tried as videos
        identities: dict[str, dict[str, object]] = {
            "probe": {"limits": list(self._limits)},
            "segment": config.segment_identity(),
            "clip": config.clip_identity(),
            "image": {
                **config.clip_identity(),
                "analysis_side": config.signals.analysis_side,
                "limits": list(self._limits),
            },
        }
        self._stores = {
            step: context.items(f"curate-{step}", step_digest(identity)).uri for step, identity in identities.items()
        }

    def _run(self, step: str, measurement: Measurement, tasks: Tasks, seconds: Sequence[float] = ()) -> Iterator[Any]:
        """Results of `tasks`; `seconds` of video in each, for the engine's meter."""
        timed = zip(tasks, chain(seconds, repeat(0.0)), strict=False)
        jobs = [Job(task, task.media.digest, self._stores[step], key, video_s) for (key, task), video_s in timed]
        return measure_all(self._engine, measurement, jobs, self._work, self._poison)

    def probe(self, entries: Sequence[Entry]) -> Iterator[Video]:
        """Usable videos, in order."""
        tasks = [(e.file.sha256, measure.ProbeTask(e.media, self._limits)) for e in entries]
        for entry, result in zip(entries, self._run("probe", measure.probe, tasks), strict=True):
            if isinstance(result, ItemFailure):
                reason = Reason.ANIMATION if entry.animation else result.reason
                self._quarantine.append(entry.quarantined(reason, result.detail, "probe"))
                continue
            facts, _ = unpack(result)
            first = entry.file.first_frame or 0
            end = int(facts["frames"])
            if entry.file.last_frame is not None:
                end = min(end, entry.file.last_frame + 1)
            if first >= end:
                detail = f"{facts['frames']} frames, the range begins at {first}"
                self._quarantine.append(entry.quarantined(Reason.TOO_SHORT, detail, "probe"))
                continue
            try:
                crop = video_crop(entry.file, facts)
            except ItemError as error:
                self._quarantine.append(entry.quarantined(error.reason, error.detail, "probe"))
                continue
            yield Video(entry, facts, first, end, crop)

    def segments(self, videos: Sequence[Video], tick: Callable[[int], None]) -> Iterator[tuple[Video, Columns]]:
        """Signal columns of each video's used part; `tick` gets the number of frames measured."""
        config = self._config
        parts = [(video, start, end) for video in videos for start, end in video.segments]
        tasks = [
            (
                f"{video.entry.file.sha256}-{start}-{end}-{int(video.entry.drawn)}{crop_key(video.crop)}",
                measure.SegmentTask(
                    video.entry.media, start, end, config.decoder, _detector(config, video),
                    config.signals.analysis_side, config.signals.motion_stride, not video.entry.drawn,
                    shares_of(video.crop, video.facts),
                ),
            )
            for video, start, end in parts
        ]  # fmt: skip
        seconds = [(end - start) / float(video.facts["fps"]) for video, start, end in parts]
        results = self._run("segment", measure.segment, tasks, seconds)
        for video in videos:
            columns: list[Columns] = []
            failure: ItemFailure | None = None
            for start, end in video.segments:
                result = next(results)
                tick(min(end, video.end) - max(start, video.first))
                if isinstance(result, ItemFailure):
                    failure = failure or result
                else:
                    columns.append(_part(unpack_columns(result), start, video))
            together = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]} if columns else {}
            failure = failure or self._too_damaged(together)
            if failure is not None:
                self._quarantine.append(video.entry.quarantined(failure.reason, failure.detail, "signals"))
            else:
                yield video, together

    def _too_damaged(self, columns: Columns) -> ItemFailure | None:
        damaged, limit = columns["damaged"], self._config.limits.max_damaged
        if damaged.mean() <= limit:
            return None
        return ItemFailure(
            Reason.DECODE_ERROR, f"{int(damaged.sum())} of {len(damaged)} frames are damaged, more than {limit:.0%}"
        )

    def key_frames(self, clips: Sequence[Clip], entries: Sequence[Entry]) -> Iterator[tuple[Clip, bytes]]:
        """Clips with their model scores filled in, and their previews."""
        tasks = []
        for clip, entry in zip(clips, entries, strict=True):
            task = measure.ClipTask(
                entry.media, clip.first_frame, clip.frames, clip.box, self._config.decoder,
                self._config.signals.key_frames, self._models(clip.drawn), clip.record.deinterlaced,
                self._embeds(clip.drawn),
            )  # fmt: skip
            span = f"{clip.first_frame}-{clip.frames}-{'-'.join(map(str, clip.box))}-{int(clip.drawn)}"
            span += "-field" if clip.record.deinterlaced else ""
            tasks.append((f"{clip.file.sha256}-{span}", task))
        for clip, entry, result in zip(clips, entries, self._run("clip", measure.clip, tasks), strict=True):
            if isinstance(result, ItemFailure):
                where = f"frames {clip.first_frame}..{clip.first_frame + clip.frames - 1}: {result.detail}"
                self._quarantine.append(entry.quarantined(result.reason, where, "key_frames"))
                continue
            facts, preview = unpack(result)
            clip.scores |= facts["scores"]
            clip.embedding = bytes.fromhex(facts["embedding"])
            yield clip, preview

    def images(self, entries: Sequence[Entry]) -> Iterator[tuple[Clip, bytes]]:
        """Still images as clips of one frame, with their previews."""
        side = self._config.signals.analysis_side
        tasks = [
            (
                f"{e.file.sha256}-{int(e.drawn)}" + (f"-{crop.key}" if crop else ""),
                measure.ImageTask(
                    e.media, self._limits, side, not e.drawn, self._models(e.drawn), self._embeds(e.drawn), crop
                ),
            )
            for e, crop in ((e, ListedCrop.of(e.file)) for e in entries)
        ]
        for entry, result in zip(entries, self._run("image", measure.image, tasks), strict=True):
            if isinstance(result, ItemFailure):
                if result.reason == Reason.ANIMATION:
                    self.animations.append(entry.as_video())
                else:
                    self._quarantine.append(entry.quarantined(result.reason, result.detail, "image"))
                continue
            facts, preview = unpack(result)
            hashes = from_text(facts["phash"])
            texts = captions_of(Span(0, 1), entry.file.captions, self._config.min_caption_overlap)
            yield Clip(
                entry.source, entry.file, entry.drawn, 0, 0, 0, 1, 0.0, facts["width"], facts["height"],
                Box(*facts["box"]), texts, facts["phash"], facts["content"], hashes, hashes, entry.order,
                facts["scores"], MediaRecord(transforms=(*facts["transforms"], *crop_of(entry.file))),
                embedding=bytes.fromhex(facts["embedding"]),
            ), preview  # fmt: skip

    def _embeds(self, drawn: bool) -> bool:
        return self._config.signals.embedding and not drawn

    def _models(self, drawn: bool) -> tuple[bool, bool, bool]:
        signals = self._config.signals
        return (False, False, False) if drawn else (signals.text, signals.nsfw, signals.quality)


def _part(columns: Columns, start: int, video: Video) -> Columns:
    """The rows of a segment that lie inside the used part."""
    low, high = max(start, video.first) - start, video.end - start
    return {name: values[low:high] for name, values in columns.items()}


def _detector(config: CurateConfig, video: Video) -> str:
    """A drawing is one shot by its making, and the detectors were trained on film."""
    return "none" if video.entry.drawn else config.shots.detector


def cut(video: Video, columns: Columns, config: CurateConfig) -> list[Clip]:
    """Candidate clips of a video with the scores of their frames; captions may be empty."""
    spans = candidate_spans(columns, video.first, config.shots, _detector(config, video) == "none")
    return [_clip(video, span, columns, config) for span in spans]


def _clip(video: Video, span: Span, columns: Columns, config: CurateConfig) -> Clip:
    rows = slice(span.start - video.first, span.end - video.first)
    own = {name: values[rows] for name, values in columns.items()}
    width, height, fps = int(own["width"][0]), int(own["height"][0]), float(video.facts["fps"])
    seen = part_of(video.crop, video.facts, (width, height))
    # Drawings are framed as they were drawn: a plain dark ground is no bar.
    box = seen if video.entry.drawn else joint(seen, content_box(own, width, height))
    phash = sampled_hashes(own)
    scores = clip_scores(own, fps, box, seen.width, seen.height)
    scores["gap"] = round(float(own["gap"][:-1].max()), 3) if span.frames > 1 else None
    return Clip(
        video.entry.source, video.entry.file, video.entry.drawn, int(own["start_us"][0]), int(own["end_us"][-1]),
        span.start, span.frames, fps, width, height, box,
        captions_of(span, video.entry.file.captions, config.min_caption_overlap), phash, content_digest(own),
        from_text(phash), np.asarray(own["phash"][::_DENSE_STRIDE], dtype=np.uint64), video.entry.order, scores,
        _record(video, columns, scores, (width, height), config),
    )  # fmt: skip


def _record(
    video: Video, columns: Columns, scores: dict[str, float | None], size: tuple[int, int], config: CurateConfig
) -> MediaRecord:
    """What is known of the clip's media; a clip that is deinterlaced scores as progressive from here on."""
    limit, measured = config.filters.max_interlaced, scores["interlaced"]
    field = config.interlaced == "deinterlace" and limit is not None and (measured or 0.0) > limit
    if field:
        scores["interlaced"] = 0.0
    own = {
        "width": size[0], "height": size[1], "interlaced": measured,
        "damaged_frames": int(columns["damaged"].sum()),  # of the part of the file that may be used
    }  # fmt: skip
    return record_of(video.entry.file, video.facts, own, field)


def batches(videos: Iterable[Video]) -> Iterator[list[Video]]:
    """Consecutive videos of at most `_BATCH_FRAMES` together."""
    batch: list[Video] = []
    frames = 0
    for video in videos:
        if batch and frames + video.end - video.first > _BATCH_FRAMES:
            yield batch
            batch, frames = [], 0
        batch.append(video)
        frames += video.end - video.first
    if batch:
        yield batch
