"""Stage `curate`: listed files to a table of clips, kept and dropped, with every score and reason.

Layout of the artifact: `clips.parquet`, `hashes.parquet` (what a new decision needs beside it),
`embeddings.parquet` where they were measured, `quarantine.parquet`, `funnel.json`, `previews/CLIP_ID.jpg`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dataprep.blocked import FILE_STEP, Blocked, read_block_list
from dataprep.blocked import STEP as BLOCKED_STEP
from dataprep.captioning.clips import ClipCaptions
from dataprep.captioning.recaption import STEP as RECAPTION
from dataprep.curate_config import CurateConfig
from dataprep.curation.clip_ids import ClipIds
from dataprep.curation.clip_log import ClipLog
from dataprep.curation.filters import decide
from dataprep.curation.publish import Verdicts, kept_facts, write_tables
from dataprep.curation.table import FUNNEL, PREVIEWS, Clip, Funnel
from dataprep.curation.videos import Entry, Measurer, Video, batches, cut
from dataprep.engine import open_engine
from dataprep.engines.meter import Meter
from dataprep.media.location import MediaLocator
from dataprep.quarantine import QUARANTINE, QuarantineLog, QuarantineRow, Reason, check_rate
from dataprep.sources.listing import SourceReader
from dataprep.spool import Spool, chunks
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.stage import StageContext

MIN_FILES_FOR_RATE = 20  # in a handful of files one bad file is no rate
_IMAGE_BATCH = 512
_PROBED_TOGETHER = 8192
_PRELOAD = ("dataprep.curation.measure", "dataprep.captioning.frames")


def run(context: StageContext) -> None:
    """Raises DataIntegrityError past the quarantine rate, when no clip is kept, or outside the expected yield."""
    _Curation(context).run()


class _Curation:
    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.config = context.config(CurateConfig)
        self.out = context.output("clips")
        captions = self.config.captions
        self.captions = None if captions is None else ClipCaptions(self.context, self.config, captions)
        self.rewrites = captions is not None and captions.writes_missing
        self.clips = ClipLog(provenance=captions is not None, objects=self.rewrites)
        self.seen: ClipIds | None = ClipIds()
        self.quarantine = QuarantineLog()
        self.funnel = Funnel()
        self.videos, self.images = Spool[Entry](), Spool[Entry]()
        self.listed = self.rejected = self.admitted = 0
        self.measured, self.total = 0, 0
        self.meter = Meter()
        blocked = read_block_list(context)
        self.blocked = None if blocked is None else Blocked(blocked)

    def run(self) -> None:
        shutil.rmtree(self.out / PREVIEWS, ignore_errors=True)  # of an attempt that was killed here
        (self.out / PREVIEWS).mkdir(parents=True)
        self._list()
        with open_engine(self.context.resources, isolate=True, preload=_PRELOAD) as engine:
            self.meter = engine.meter
            measurer = Measurer(self.context, self.config, engine, self.quarantine)
            videos = self._probed(measurer, self.videos)
            self.total += len(self.images)
            for batch in batches(videos):
                self._videos(measurer, batch)
            for images in chunks(self.images, _IMAGE_BATCH):
                self._images(measurer, images)
            moving = self._probed(measurer, measurer.animations)
            self.total -= len(moving)
            for batch in batches(moving):
                self._videos(measurer, batch)
        self.seen = None  # its memory is wanted for the decision
        self.context.metrics(self.meter.final())
        self._count_files()
        self._write(self._decide())

    def _list(self) -> None:
        """Files worth measuring, in input order; rows that the sources rejected go straight to the quarantine."""
        readers = [SourceReader(artifact) for artifact in self.context.input_list("source")]
        names = [reader.name for reader in readers]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ConfigError("two sources have one name", value=twice[0], where="inputs of curate")
        self.locator = locator = MediaLocator(self.context, readers)
        for reader in readers:
            drawn = reader.facts.kind in self.config.drawn_kinds
            for file in reader.files():
                media = locator.file(reader.name, file.path, file.size_bytes, file.sha256)
                entry = Entry(reader.name, file, media, drawn, self.listed)
                self.listed += 1
                if self._admits_file(entry):
                    (self.videos if file.media == "video" else self.images).append(entry)
            for row in reader.rejected():
                self.rejected += 1
                detail = f"row {row.row}: {row.detail}" if row.row is not None else row.detail
                self.quarantine.append(QuarantineRow(reader.name, "", row.path, row.reason, detail, "source"))
            self.context.check_drain()

    def _admits_file(self, entry: Entry) -> bool:
        """Whether a file is worth decoding: no takedown keeps it out as a whole, and it has a caption unless its clips
        are to be scored all the same."""
        if self.blocked is not None:
            found = self.blocked.file(entry.source, entry.file.source_id, entry.file.sha256, entry.file.media)
            if found is not None:
                self.quarantine.append(entry.quarantined(Reason.TAKEDOWN, found.detail, FILE_STEP))
                return False
        self.admitted += 1
        if entry.file.captions or self._keeps_bare:
            return True
        self.quarantine.append(entry.quarantined(Reason.MISSING_CAPTION, "the file has none", "captions"))
        return False

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
        return self.rewrites or self.config.missing_caption == "drop"

    def _probed(self, measurer: Measurer, entries: Spool[Entry]) -> Spool[Video]:
        """Usable videos. How many frames there are to measure is not known before, so this counts files."""
        videos = Spool[Video]()
        failed = len(self.quarantine)
        for some in chunks(entries, _PROBED_TOGETHER):
            for video in measurer.probe(some):
                videos.append(video)
                self.total += video.end - video.first
                done = len(videos) + len(self.quarantine) - failed
                self.context.progress.update(done, len(entries), "files probed", self.meter.line(), self.meter.live())
                self.context.check_drain()
        entries.close()
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
        assert self.seen is not None  # until all is measured
        name, file = clip.clip_id, clip.file
        if (first := self.seen.add(name, file.path)) is not None:
            detail = f"{file.source_id!r} and this span already stand for {first}"
            self.quarantine.append(
                QuarantineRow(clip.source, file.source_id, file.path, "duplicate_id", detail, "clips")
            )
            return
        if self.captions is not None:
            self.captions.clean([clip])
        self.clips.add(clip)
        (self.out / PREVIEWS / f"{name}.jpg").write_bytes(preview)

    def _tick(self, units: int) -> None:
        self.measured += units
        note = f"{len(self.clips)} clips, {self.meter.line()}"
        self.context.progress.update(self.measured, self.total, "frames", note, self.meter.live())
        self.context.check_drain()

    def _count_files(self) -> None:
        """Funnel steps that count files, and the quarantine rate."""
        reasons, measured = self.quarantine.reasons, ("probe", "captions", "signals", "image")
        self.funnel.add("listed", "files", self.listed + self.rejected, reasons(("source",)))
        if self.admitted < self.listed:
            self.funnel.add("takedowns", "files", self.listed, reasons((FILE_STEP,)))
        self.funnel.add("readable", "files", self.admitted, reasons(measured))
        bare = reasons(("clip_captions", "key_frames", "clips", BLOCKED_STEP))
        self.funnel.add("clips", "clips", len(self.clips) + sum(bare.values()), bare)
        total = self.admitted + self.rejected
        if total >= MIN_FILES_FOR_RATE:
            failed = sum(reasons(measured).values()) + self.rejected
            check_rate(failed, total, self.config.max_quarantine_rate, "curate")

    def _decide(self) -> Verdicts:
        decision = decide(self.clips.candidates(), self.config.filters, self.config.dedup)
        for step in decision.steps:
            self.funnel.add(step.name, "clips", step.entered, step.dropped)
        verdicts = Verdicts.of(decision)
        if self.captions is not None and self.rewrites:
            self._recaption(self.captions, verdicts)
        return verdicts

    def _recaption(self, captions: ClipCaptions, verdicts: Verdicts) -> None:
        """New captions for kept clips; those that must go for want of one leave the table."""
        kept = verdicts.kept
        asked = [(row, clip) for row, clip in self.clips.chosen(kept) if captions.wants(clip)]
        asked.sort(key=lambda one: (one[1].order, one[1].first_frame))
        with contextlib.ExitStack() as stack:
            gone = captions.write(
                [clip for _, clip in asked], self.locator,
                lambda: stack.enter_context(open_engine(self.context.resources, isolate=True, preload=_PRELOAD)),
            )  # fmt: skip
        for row, clip in asked:
            verdicts.take(row, clip)
        dropped = Counter(str(clip.drop_rule) for _, clip in asked if clip.drop_rule is not None)
        rows = {id(clip): row for row, clip in asked}
        for clip, quarantined in gone:
            verdicts.gone.add(rows[id(clip)])
            (self.out / PREVIEWS / f"{clip.clip_id}.jpg").unlink()
            self.quarantine.append(quarantined)
            dropped[quarantined.reason] += 1
        self.funnel.add(RECAPTION, "clips", int(np.count_nonzero(kept)), dict(dropped))

    def _write(self, verdicts: Verdicts) -> None:
        files, clips = self.listed + self.rejected, len(self.clips) - len(verdicts.gone)
        rows = verdicts.kept
        kept = int(np.count_nonzero(rows))
        reasons = verdicts.dropped() + Counter(self.quarantine.reasons())
        if not kept:
            raise DataIntegrityError(
                f"no clip is kept of {files} files",
                value=dict(sorted(reasons.items())),
                where="curate",
                next_step="loosen the thresholds that these reasons name, or look at the files",
            )
        self._check_yield(kept, clips, reasons)
        write_tables(self.out, self.clips, verdicts)
        quarantined = self.quarantine.write(self.out / QUARANTINE)
        self.funnel.write(self.out / FUNNEL)
        self.context.summary(
            "clips",
            {
                "files": files,
                "clips": clips,
                "kept": kept,
                **kept_facts(self.clips, rows),
                "quarantined": quarantined,
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
