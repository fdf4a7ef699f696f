"""Stage `encode`: kept clips to latents and text features, in shards with an index.

First every clip is brought into the item store (resumable, in parallel), then shards are written from there
in an order that depends on the clips alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataprep.curation.table import CLIPS
from dataprep.encode.clips import KeptClip, kept_clips
from dataprep.encode.dataset import (
    DATASET,
    NULL_TEXT,
    RECONSTRUCTIONS,
    TIMES,
    TIMES_DIGEST,
    EncodedClip,
    Identity,
    codec_facts,
    dataset_facts,
    encoder_facts,
    identity_facts,
    write_facts,
    write_samples,
)
from dataprep.encode.device_clock import DeviceClock
from dataprep.encode.jobs import (
    ClipMedia,
    Encoded,
    EncodeJob,
    ReconstructJob,
    codec_of,
    encode_clip,
    reconstruct,
    text_encoder_of,
    text_member,
)
from dataprep.encode.overlapped import encode_overlapped, overlaps
from dataprep.encode.psnr import check_psnr, psnr_figures
from dataprep.encode.spread import Done, Spread
from dataprep.encode_config import EncodeConfig
from dataprep.engine import Engine, InlineEngine, open_engine, single_threaded
from dataprep.engines.meter import Meter
from dataprep.media.location import MediaLocator
from dataprep.quarantine import (
    QUARANTINE,
    ItemError,
    ItemFailure,
    QuarantineLog,
    QuarantineRow,
    check_rate,
)
from dataprep.sources.listing import SourceReader
from dataprep.spool import Spool, chunks
from m4v.codec.interface import DeviceCodec
from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic

STEP = "encode"
_OVERLAPPED_TOGETHER = 4096  # jobs in memory


def run(context: StageContext) -> None:
    """Raises InputError when no clip could be encoded, DataIntegrityError past the quarantine rate."""
    config = context.config(EncodeConfig)
    work = _Work(context, config)
    planned = work.plan(kept_clips(context.input("clips").path(CLIPS)))
    quarantined = work.quarantined
    with single_threaded(), open_engine(context.resources, on_device=True) as engine:
        encoded, shown = work.encode(engine, planned)
        kept = len(encoded) + len(quarantined)
        check_rate(len(quarantined), kept, config.max_quarantine_rate, "encode")
        if not encoded:
            raise InputError(
                "no clip could be encoded", value=f"{len(quarantined)} of {kept} kept clips in quarantine",
                next_step="m4v data quarantine",
            )  # fmt: skip
        out = context.output("dataset")
        work.write_reconstructions(engine, shown, out / RECONSTRUCTIONS)
        context.metrics(engine.meter.final())
        if work.clock.frames:
            context.metrics(work.clock.figures())
    quarantined.write(out / QUARANTINE)
    write_atomic(out / NULL_TEXT, work.null_text())
    shards = write_samples(
        out, encoded, config, encoder_facts(work.facts), work.item, work.tick(len(encoded), "samples written")
    )
    facts = dataset_facts(encoded, work.facts, len(quarantined), len(shards))
    write_facts(out / DATASET, facts)
    context.summary("dataset", {k: facts[k] for k in ("samples", "videos", "images", "captions", "tokens", "shards")})
    context.metrics(work.hits)


@dataclass(frozen=True)
class _Planned:
    clip: KeptClip
    media: ClipMedia
    latent_key: str


class _Work:
    """The stage's parts, with what they share."""

    def __init__(self, context: StageContext, config: EncodeConfig) -> None:
        self._context, self._config, self._device = context, config, context.resources.device
        self._weights = tuple((name, artifact.ref) for name, artifact in sorted(context.weights().items()))
        with single_threaded():
            codec = codec_of(config.codec, self._weights, self._device)
            text = text_encoder_of(config.text_encoder, self._weights, self._device).digest
        self.identity = Identity(codec.digest, text, config.buckets.fps)
        self.facts = identity_facts(config, codec_facts(config.codec, codec), self.identity)
        self._latents = context.items("latents", codec.digest)
        self._texts = context.items("texts", text)
        self._times = context.items(TIMES, TIMES_DIGEST)
        self._overlaps = isinstance(codec, DeviceCodec) and overlaps(self._device, context.resources.engine)
        self.clock = DeviceClock()
        self.quarantined = QuarantineLog()
        self.hits = {"latents_cached": 0, "texts_cached": 0, "latents_encoded": 0}

    def plan(self, clips: Iterable[KeptClip]) -> Spool[_Planned]:
        """Bucket and item key of every clip; clips that fill none are quarantined."""
        planned = Spool[_Planned]()
        readers = [SourceReader(artifact) for artifact in self._context.input_list("source")]
        locator, names = MediaLocator(self._context, readers), {reader.name for reader in readers}
        for clip in clips:
            try:
                buckets = clip.buckets(self._config.buckets, self._config.codec.time_stride)
            except ItemError as error:
                self.quarantined.append(_row(clip, error.reason, error.detail))
                continue
            if clip.source not in names:
                raise DataIntegrityError("clip is of a source that is no input", value=clip.source, where=clip.clip_id)
            fps = clip.sampling_fps(self._config.buckets)
            media = ClipMedia(
                file=locator.file(clip.source, clip.path, clip.size_bytes, clip.source_digest),
                first_frame=clip.first_frame, end_frame=clip.first_frame + clip.frames, crop=clip.crop, fps=fps,
                buckets=tuple(buckets), deinterlace=clip.deinterlace,
            )  # fmt: skip
            planned.append(_Planned(clip, media, clip.latent_key(buckets, fps)))
        return planned

    def encode(self, engine: Engine, planned: Spool[_Planned]) -> tuple[Spool[EncodedClip], list[Done]]:
        """Bring every clip into the item store; returns all that are there, and those to be shown."""
        encoded, spread = Spool[EncodedClip](), Spread(self._config.reconstructions)
        tick = self.tick(len(planned), "clips encoded", engine.meter)
        for number, (plan, result) in enumerate(zip(planned, self._results(engine, planned), strict=True)):
            if isinstance(result, ItemFailure):
                self.quarantined.append(_row(plan.clip, result.reason, result.detail))
            else:
                done = self._done(plan, result)
                encoded.append(done.encoded)
                spread.add(done)
                self._count(result, done.encoded, engine.meter)
            tick(number + 1)
        planned.close()
        return encoded, spread.chosen()

    def _results(self, engine: Engine, planned: Spool[_Planned]) -> Iterator[Encoded | ItemFailure]:
        jobs, timeout_s = (self._job(plan) for plan in planned), self._config.item_timeout_s
        if not self._overlaps:
            yield from engine.map(encode_clip, jobs, timeout_s=timeout_s, total=len(planned))
            return
        for some in chunks(jobs, _OVERLAPPED_TOGETHER):
            yield from encode_overlapped(engine, some, 2 * self._context.resources.workers, timeout_s, self.clock)

    def _job(self, plan: _Planned) -> EncodeJob:
        return EncodeJob(
            media=plan.media, codec=self._config.codec, latents_uri=self._latents.uri, latent_key=plan.latent_key,
            captions=plan.clip.captions, text_encoder=self._config.text_encoder, texts_uri=self._texts.uri,
            text_key=plan.clip.text_key(), times_uri=self._times.uri, weights=self._weights, device=self._device,
        )  # fmt: skip

    def _done(self, plan: _Planned, result: Encoded) -> Done:
        bucket = next(b for b in plan.media.buckets if b.latent == result.shape)
        clip = plan.clip
        return Done(
            EncodedClip(
                clip,
                bucket,
                plan.media.fps,
                plan.latent_key,
                clip.text_key(),
                self.identity.sample_id(clip, bucket),
                times_key=plan.latent_key,
            ),
            plan.media,
        )

    def _count(self, result: Encoded, encoded: EncodedClip, meter: Meter) -> None:
        self.hits["latents_cached" if result.latent_hit else "latents_encoded"] += 1
        self.hits["texts_cached"] += result.text_hit
        if not result.latent_hit and encoded.fps:
            meter.video_s += encoded.bucket.frames / encoded.fps

    def tick(self, total: int, unit: str, meter: Meter | None = None) -> Callable[[int], None]:
        """Reports progress, and stops here when asked to: all that is done lies in the item store."""

        def report(done: int) -> None:
            note, figures = ("", {}) if meter is None else (meter.line(), meter.live())
            self._context.progress.update(done, total, unit, note, figures)
            self._context.check_drain()

        return report

    def item(self, part: str, key: str) -> bytes:
        payload = ItemStore({"latent": self._latents, "text": self._texts, "times": self._times}[part]).get(key)
        if payload is None:
            raise DataIntegrityError("encoded item is gone", value=f"{part} {key}", next_step="run the stage again")
        return payload

    def null_text(self) -> bytes:
        """Features of the empty prompt, one row."""
        with single_threaded():
            return text_member(text_encoder_of(self._config.text_encoder, self._weights, self._device), ("",))

    def write_reconstructions(self, engine: Engine, chosen: Sequence[Done], directory: Path) -> None:
        """Clips beside what their latents decode to, and `reconstructions.json` with the PSNR of each."""
        store = self._context.items("reconstructions", self.identity.codec).uri
        jobs = [
            ReconstructJob(
                d.media, self._config.codec, self._latents.uri, d.encoded.latent_key, store, self._weights, self._device
            )
            for d in chosen
        ]
        rows = []
        tick = self.tick(len(jobs), "reconstructions", engine.meter)
        # Where this process has the weights on the GPU, workers shall not load them there again.
        at_hand: Engine = InlineEngine() if self._overlaps else engine
        results = at_hand.map(reconstruct, jobs, timeout_s=self._config.item_timeout_s)
        for number, (one, result) in enumerate(zip(chosen, results, strict=True)):
            if isinstance(result, ItemFailure):
                raise InfrastructureError(
                    f"clip was encoded but cannot be read again: {result.reason} {result.detail}",
                    value=one.encoded.clip.path, where=one.encoded.clip.source, next_step="m4v run RECIPE resumes it",
                )  # fmt: skip
            name = f"{one.encoded.clip.clip_id}.mp4"
            write_atomic(directory / name, result.mp4)
            rows.append(_reconstruction_row(one.encoded, name, result.psnr_db, result.first_frame_psnr_db))
            tick(number + 1)
        write_facts(directory.with_suffix(".json"), {"layout": "source left, reconstruction right", "clips": rows})
        self._context.metrics(psnr_figures(rows))
        check_psnr(rows, self._config.min_psnr_db)


def _reconstruction_row(encoded: EncodedClip, name: str, psnr: float, first: float) -> dict[str, object]:
    return {
        "clip_id": encoded.clip.clip_id, "file": f"{RECONSTRUCTIONS}/{name}", "source": encoded.clip.source,
        "media": encoded.clip.media, "caption": encoded.clip.captions[0], "frames": encoded.bucket.frames,
        "height": encoded.bucket.height, "width": encoded.bucket.width, "fps": encoded.fps,
        "psnr_db": psnr, "first_frame_psnr_db": first,
    }  # fmt: skip


def _row(clip: KeptClip, reason: str, detail: str) -> QuarantineRow:
    return QuarantineRow(clip.source, clip.source_id, clip.path, reason, detail, STEP)
