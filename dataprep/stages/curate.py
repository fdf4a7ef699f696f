"""Stage `curate`: listed files to a table of clips, kept and dropped, with every score and reason.

Layout of the artifact: `clips.parquet`, `hashes.parquet` (what a new decision needs beside it),
`embeddings.parquet` where they were measured, `quarantine.parquet`, `funnel.json`, `previews/CLIP_ID.jpg`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence

from dataprep.blocked import FILE_STEP, Blocked, read_block_list
from dataprep.blocked import STEP as BLOCKED_STEP
from dataprep.captioning.clips import ClipCaptions
from dataprep.captioning.recaption import STEP as RECAPTION
from dataprep.curate_config import CurateConfig
from dataprep.curation.candidates import EMBEDDINGS, HASHES, candidates_of, write_embeddings, write_hashes
from dataprep.curation.filters import decide
from dataprep.curation.table import CLIPS, FUNNEL, PREVIEWS, Clip, Funnel, by_place, write_clips
from dataprep.curation.videos import Entry, Measurer, Video, batches, cut
from dataprep.engine import open_engine
from dataprep.engines.meter import Meter
from dataprep.media.location import MediaLocator
from dataprep.quarantine import QUARANTINE, QuarantineRow, Reason, check_rate, write_quarantine
from dataprep.sources.listing import SourceReader
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.stage import StageContext

MIN_FILES_FOR_RATE = 20  # in a handful of files one bad file is no rate
_IMAGE_BATCH = 512
_PRELOAD = ("dataprep.curation.measure", "dataprep.captioning.frames")


def run(context: StageContext) -> None:
    """Raises DataIntegrityError past the quarantine rate, when no clip is kept, or outside the expected yield."""
    _Curation(context).run()


class _Curation:
    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.config = context.config(CurateConfig)
        self.out = context.output("clips")
        self.clips: dict[str, Clip] = {}
        self.quarantine: list[QuarantineRow] = []
        self.funnel = Funnel()
        self.measured, self.total = 0, 0
        self.meter = Meter()
        captions = self.config.captions
        blocked = read_block_list(context)
        self.blocked = None if blocked is None else Blocked(blocked)
        self.captions = None if captions is None else ClipCaptions(self.context, self.config, captions)

    def run(self) -> None:
        shutil.rmtree(self.out / PREVIEWS, ignore_errors=True)  # of an attempt that was killed here
        (self.out / PREVIEWS).mkdir(parents=True)
        listed, rejected = self._listed()
        entries = self._admitted(listed)
        with open_engine(self.context.resources, isolate=True, preload=_PRELOAD) as engine:
            self.meter = engine.meter
            measurer = Measurer(self.context, self.config, engine, self.quarantine)
            captioned = self._captioned(entries)
            videos = self._probed(measurer, [e for e in captioned if e.file.media == "video"])
            images = [e for e in captioned if e.file.media == "image"]
            self.total = sum(v.end - v.first for v in videos) + len(images)
            for batch in batches(videos):
                self._videos(measurer, batch)
            for start in range(0, len(images), _IMAGE_BATCH):
                self._images(measurer, images[start : start + _IMAGE_BATCH])
            moving = self._probed(measurer, measurer.animations)
            self.total += sum(v.end - v.first for v in moving) - len(moving)
            for batch in batches(moving):
                self._videos(measurer, batch)
        self.context.metrics(self.meter.final())
        self._count_files(entries, len(listed), rejected)
        self._decide()
        self._write(len(listed) + rejected)

    def _listed(self) -> tuple[list[Entry], int]:
        """All listed files in input order; rows that the sources rejected go straight to the quarantine."""
        readers = [SourceReader(artifact) for artifact in self.context.input_list("source")]
        names = [reader.name for reader in readers]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ConfigError("two sources have one name", value=twice[0], where="inputs of curate")
        self.locator = locator = MediaLocator(self.context, readers)
        entries: list[Entry] = []
        rejected = 0
        for reader in readers:
            drawn = reader.facts.kind in self.config.drawn_kinds
            for file in reader.files():
                media = locator.file(reader.name, file.path, file.size_bytes, file.sha256)
                entries.append(Entry(reader.name, file, media, drawn, len(entries)))
            for row in reader.rejected():
                rejected += 1
                detail = f"row {row.row}: {row.detail}" if row.row is not None else row.detail
                self.quarantine.append(QuarantineRow(reader.name, "", row.path, row.reason, detail, "source"))
        return entries, rejected

    def _admitted(self, entries: Sequence[Entry]) -> list[Entry]:
        """Files that no takedown keeps out as a whole."""
        if self.blocked is None:
            return list(entries)
        admitted = []
        for entry in entries:
            found = self.blocked.file(entry.source, entry.file.source_id, entry.file.sha256, entry.file.media)
            if found is None:
                admitted.append(entry)
            else:
                self.quarantine.append(entry.quarantined(Reason.TAKEDOWN, found.detail, FILE_STEP))
        return admitted

    def _admits(self, clip: Clip) -> bool:
        """Whether no takedown keeps a clip out; one that stays out leaves a quarantine row."""
        found = None if self.blocked is None else self.blocked.clip(clip)
        if found is not None:
            row = QuarantineRow(
                clip.source, clip.file.source_id, clip.file.path, Reason.TAKEDOWN, found.detail, BLOCKED_STEP
            )
            self.quarantine.append(row)
        return found is None

    @property
    def _keeps_bare(self) -> bool:
        """Clips without a caption are measured: they get a row all the same, or a caption in the end."""
        written = self.config.captions is not None and self.config.captions.writes_missing
        return written or self.config.missing_caption == "drop"

    def _captioned(self, entries: Sequence[Entry]) -> list[Entry]:
        """Files worth decoding: without any caption a file is quarantined, unless its clips are to be scored."""
        if self._keeps_bare:
            return list(entries)
        bare = [e for e in entries if not e.file.captions]
        self.quarantine += [e.quarantined(Reason.MISSING_CAPTION, "the file has none", "captions") for e in bare]
        return [e for e in entries if e.file.captions]

    def _probed(self, measurer: Measurer, entries: Sequence[Entry]) -> list[Video]:
        """Usable videos. How many frames there are to measure is not known before, so this counts files."""
        videos: list[Video] = []
        failed = len(self.quarantine)
        for video in measurer.probe(entries):
            videos.append(video)
            done = len(videos) + len(self.quarantine) - failed
            self.context.progress.update(done, len(entries), "files probed", self.meter.line(), self.meter.live())
            self.context.check_drain()
        return videos

    def _videos(self, measurer: Measurer, videos: Sequence[Video]) -> None:
        candidates: list[Clip] = []
        owners: list[Entry] = []
        for video, columns in measurer.segments(videos, self._tick):
            for clip in filter(self._admits, cut(video, columns, self.config)):
                if clip.captions or self._keeps_bare:
                    candidates.append(clip)
                    owners.append(video.entry)
                else:
                    where = f"no caption covers frames {clip.first_frame}..{clip.first_frame + clip.frames - 1}"
                    self.quarantine.append(video.entry.quarantined(Reason.MISSING_CAPTION, where, "clip_captions"))
        for clip, preview in measurer.key_frames(candidates, owners):
            self._accept(clip, preview)
            self._tick(0)

    def _images(self, measurer: Measurer, entries: Sequence[Entry]) -> None:
        for clip, preview in measurer.images(entries):
            if self._admits(clip):
                self._accept(clip, preview)
            self._tick(1)

    def _accept(self, clip: Clip, preview: bytes) -> None:
        if clip.clip_id in self.clips:
            first = self.clips[clip.clip_id]
            detail = f"{clip.file.source_id!r} and this span already stand for {first.file.path}"
            row = QuarantineRow(clip.source, clip.file.source_id, clip.file.path, "duplicate_id", detail, "clips")
            self.quarantine.append(row)
            return
        self.clips[clip.clip_id] = clip
        (self.out / PREVIEWS / f"{clip.clip_id}.jpg").write_bytes(preview)

    def _tick(self, units: int) -> None:
        self.measured += units
        note = f"{len(self.clips)} clips, {self.meter.line()}"
        self.context.progress.update(self.measured, self.total, "frames", note, self.meter.live())
        self.context.check_drain()

    def _count_files(self, entries: Sequence[Entry], listed: int, rejected: int) -> None:
        """Funnel steps that count files, and the quarantine rate."""
        failed = [row for row in self.quarantine if row.step in ("probe", "captions", "signals", "image")]
        self.funnel.add("listed", "files", listed + rejected, _reasons(self.quarantine, ("source",)))
        if len(entries) < listed:
            self.funnel.add("takedowns", "files", listed, _reasons(self.quarantine, (FILE_STEP,)))
        self.funnel.add("readable", "files", len(entries), _reasons(failed, ("probe", "captions", "signals", "image")))
        bare = _reasons(self.quarantine, ("clip_captions", "key_frames", "clips", BLOCKED_STEP))
        self.funnel.add("clips", "clips", len(self.clips) + sum(bare.values()), bare)
        total = len(entries) + rejected
        if total >= MIN_FILES_FOR_RATE:
            check_rate(len(failed) + rejected, total, self.config.max_quarantine_rate, "curate")

    def _decide(self) -> None:
        clips = sorted(self.clips.values(), key=lambda c: (c.order, c.first_frame))
        if self.captions is not None:
            self.captions.clean(clips)
        decision = decide(candidates_of(clips), self.config.filters, self.config.dedup)
        for step in decision.steps:
            self.funnel.add(step.name, "clips", step.entered, step.dropped)
        for clip, rule, of in zip(clips, decision.drop_rules, decision.duplicate_of, strict=True):
            clip.drop_rule, clip.duplicate_of = rule, of
        if self.captions is not None and self.config.captions is not None and self.config.captions.writes_missing:
            self._recaption(self.captions, [clip for clip in clips if clip.drop_rule is None])

    def _recaption(self, captions: ClipCaptions, kept: Sequence[Clip]) -> None:
        """New captions for kept clips; those that must go for want of one leave the table."""
        with contextlib.ExitStack() as stack:
            gone = captions.write(
                kept, self.locator,
                lambda: stack.enter_context(open_engine(self.context.resources, isolate=True, preload=_PRELOAD)),
            )  # fmt: skip
        dropped = Counter(str(clip.drop_rule) for clip in kept if clip.drop_rule is not None)
        for clip, row in gone:
            del self.clips[clip.clip_id]
            (self.out / PREVIEWS / f"{clip.clip_id}.jpg").unlink()
            self.quarantine.append(row)
            dropped[row.reason] += 1
        self.funnel.add(RECAPTION, "clips", len(kept), dict(dropped))

    def _write(self, files: int) -> None:
        clips = list(self.clips.values())
        kept = [clip for clip in clips if clip.drop_rule is None]
        reasons = Counter(
            [str(c.drop_rule) for c in clips if c.drop_rule] + [str(row.reason) for row in self.quarantine]
        )
        if not kept:
            raise DataIntegrityError(
                f"no clip is kept of {files} files",
                value=dict(sorted(reasons.items())),
                where="curate",
                next_step="loosen the thresholds that these reasons name, or look at the files",
            )
        self._check_yield(len(kept), len(clips), reasons)
        write_clips(self.out / CLIPS, clips)
        write_hashes(self.out / HASHES, by_place(clips))
        write_embeddings(self.out / EMBEDDINGS, by_place(clips))
        write_quarantine(self.out / QUARANTINE, self.quarantine)
        self.funnel.write(self.out / FUNNEL)
        self.context.summary(
            "clips",
            {
                "files": files,
                "clips": len(clips),
                "kept": len(kept),
                "kept_videos": sum(c.is_video for c in kept),
                "kept_seconds": round(sum(c.end_us - c.start_us for c in kept) / 1e6, 3),
                "quarantined": len(set(self.quarantine)),
                "dropped_by_reason": dict(sorted(reasons.items())),
                **({} if self.captions is None else {"captions": self.captions.summary()}),
            },
        )

    def _check_yield(self, kept: int, clips: int, reasons: Counter[str]) -> None:
        """A yield that nobody expected is no success: a source or a threshold has gone wrong."""
        band = self.config.expected_yield
        if band is None or band[0] <= kept / clips <= band[1]:
            return
        raise DataIntegrityError(
            f"{kept} of {clips} clips are kept, {kept / clips:.1%}, where {band[0]:.0%} to {band[1]:.0%} were expected",
            value=dict(sorted(reasons.items())), where="curate",
            next_step="look at what these reasons name, or change curate.expected_yield",
        )  # fmt: skip


def _reasons(rows: Iterable[QuarantineRow], steps: Sequence[str]) -> dict[str, int]:
    return dict(Counter(str(row.reason) for row in rows if row.step in steps))
