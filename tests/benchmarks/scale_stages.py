"""What `curate` and `encode` do beside decoding and encoding, for `bench_scale.py`: the stages themselves run.

Only the work on pixels is left out: in the place of what an item store would give stand records of one drawn video that
was really measured, with other hashes for every file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scale_versions import manifest, stage_context

from dataprep.curation import measure, videos
from dataprep.curation.items import Job
from dataprep.curation.table import CLIPS
from dataprep.encode.jobs import Encoded, EncodeJob
from dataprep.signals.frames import pack, unpack
from dataprep.sources.listing import Caption, ListedFile, ListingWriter, SourceFacts, write_facts
from dataprep.stages import curate, encode
from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_file
from m4v.core.shard_index import INDEX
from m4v.video_io import write_mp4

FRAMES, HEIGHT, WIDTH = 48, 64, 96
_LATENT_BYTES, _TEXT_BYTES = 1536, 1024
_CURATE = {
    "shots": {"detector": "histogram"},
    "signals": {"text": False, "nsfw": False, "quality": False, "key_frames": 1},
    "filters": {"max_text": None, "max_nsfw": None, "max_brisque": None, "min_side": 32, "min_motion": None},
}


def curated(work: Path, rows: int) -> dict[str, object]:
    """Listing, candidates, decision, dedup and tables of `rows` videos of one clip each."""
    source, location = _source(work, "films", rows), work / "media"
    location.mkdir(exist_ok=True)
    records = _Records(location / "0.mp4")
    videos.measure_all = records  # type: ignore[assignment]
    context = stage_context(
        work / "curate", "dataprep.stages.curate:run", "dataprep.curate_config:CurateConfig", _CURATE,
        [("source.0", source)], ("clips", ArtifactKind.CLIPS), {"films": str(location)},
    )  # fmt: skip
    curate.run(context)
    context.progress.close()
    table = pq.ParquetFile(context.output("clips") / CLIPS).metadata.num_rows
    shutil.rmtree(work / "curate")
    if table != rows:
        raise SystemExit(f"{table} clips of {rows} videos")
    return {"clips": table, "records_cpu_s": round(records.cpu_s, 1)}


def encoded(work: Path, rows: int) -> dict[str, object]:
    """Plan, item keys, shards, index and read-back of every row of the clip table; items of 2.5 KB."""
    (work / "media").mkdir(exist_ok=True)
    clips = manifest(work / "clips", ArtifactKind.CLIPS, [], {"clips": rows})
    encode.encode_clip = _encoded  # type: ignore[attr-defined]
    items = {"latent": bytes(_LATENT_BYTES), "text": bytes(_TEXT_BYTES), "times": b"[]"}
    encode._Work.item = lambda self, part, key: items[part]  # type: ignore[method-assign]
    context = stage_context(
        work / "encode", "dataprep.stages.encode:run", "dataprep.config:EncodeConfig",
        {"reconstructions": 0, "text_encoder": {"slots": 16}},
        [("clips", clips), ("source.0", _source(work, "webvid", 1))],
        ("dataset", ArtifactKind.DATASET), {"webvid": str(work / "media")},
    )  # fmt: skip
    encode.run(context)
    context.progress.close()
    samples = pq.ParquetFile(context.output("dataset") / INDEX).metadata.num_rows
    shutil.rmtree(work / "encode")
    if samples != rows:
        raise SystemExit(f"{samples} samples of {rows} clips")
    return {"samples": samples}


def _encoded(job: EncodeJob) -> Encoded:
    return Encoded(job.media.buckets[0].latent, True, True)


def _source(work: Path, name: str, rows: int) -> Path:
    """A listing of so many videos, in the order of their paths."""
    out = work / f"source-{name}"
    out.mkdir()
    with ListingWriter(out) as writer:
        for number in range(rows):
            captions = (Caption(None, None, f"a square crosses a shaded ground, take {number}", "table.csv"),)
            digest = f"{number:064x}"
            writer.add(ListedFile(f"{number:08}.mp4", 1 << 20, digest, "video", str(number), "CC0-1.0", captions))
    facts = SourceFacts(
        name=name, kind="folder", licence="CC0-1.0", terms="", media="external", identity="full", counts={}
    )
    write_facts(out, facts)
    return manifest(out, ArtifactKind.SOURCE, [], {})


class _Records:
    """Stands in for `measure_all`: records of one video, the hashes of its frames drawn anew for every file."""

    def __init__(self, path: Path) -> None:
        write_mp4(path, _drawn(), 24)
        self._path, self._kept = path, dict[str, bytes]()
        self._columns: dict[str, Any] = {}
        self.cpu_s = 0.0

    def __call__(self, engine: object, function: Any, jobs: Sequence[Job], *_: object) -> Iterator[bytes]:
        for job in jobs:
            begin = time.process_time()
            payload = self._record(function, job)
            self.cpu_s += time.process_time() - begin
            yield payload

    def _record(self, function: Any, job: Job) -> bytes:
        name = function.__name__
        if name not in self._kept:
            media = job.task.media
            vars(media).update(
                path=self._path.name, size_bytes=self._path.stat().st_size, digest=digest_file(self._path)
            )
            self._kept[name] = function(job.task)
        if function is not measure.segment:
            return self._kept[name]
        if not self._columns:
            self._columns = unpack(self._kept[name])
        generator = np.random.default_rng(int(job.digest, 16))
        other = {
            n: generator.integers(1, 1 << 64, len(v), dtype=np.uint64) if v.dtype == np.uint64 else v
            for n, v in self._columns.items()
        }
        return pack(other)


def _drawn() -> np.ndarray:
    """A square crossing a shaded picture."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    clip = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(FRAMES):
        clip[t] = np.stack([rows * 2 + 40, columns * 2, np.full_like(rows, 90)], -1)
        clip[t, 20:44, t : 24 + t] = (230, 60, 20)
    return clip
