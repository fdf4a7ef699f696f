"""Clip tables, dataset versions and listings on disk, with rows that tests choose."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_json
from m4v.core.ids import clip_id, sample_id
from m4v.core.shard_index import SCHEMA, write_index
from m4v.core.storage import Storage
from pipelines.store import ArtifactRecord

SHARD_ROWS = 4


@dataclass(frozen=True)
class TestClip:
    """A clip as tests invent it."""

    __test__ = False
    source: str
    source_id: str
    start_us: int = 0
    end_us: int = 1_000_000
    size: tuple[int, int, int] = (5, 8, 8)
    phash: str = "00000000000000ff"
    file: str = ""  # stands for the bytes of the source file
    kept: bool = True

    @property
    def clip_id(self) -> str:
        return clip_id(self.source, self.source_id, self.start_us, self.end_us)

    @property
    def sample_id(self) -> str:
        return sample_id(self.clip_id, "encoder", str(self.size))

    @property
    def digest(self) -> str:
        return digest_json(self.file or f"{self.source} {self.source_id}")

    @property
    def media(self) -> str:
        return "video" if self.end_us else "image"

    @property
    def group(self) -> tuple[str, str, int, int, int]:
        return (self.source, self.media, *self.size)

    def facts(self) -> dict[str, object]:
        return {
            "clip_id": self.clip_id, "source": self.source, "source_id": self.source_id, "source_digest": self.digest,
            "start_us": self.start_us, "end_us": self.end_us, "phash": self.phash, "media": self.media,
        }  # fmt: skip


def random_clips(rng: random.Random, count: int) -> list[TestClip]:
    """Clips of few files, so that spans overlap and files repeat."""
    found: dict[str, TestClip] = {}
    while len(found) < count:
        start = rng.randrange(8) * 500_000
        is_image = rng.random() < 0.2
        one = TestClip(
            source=rng.choice(["web", "open", "a/b"]),
            source_id=f"page/{rng.randrange(count)}",
            start_us=0 if is_image else start,
            end_us=0 if is_image else start + rng.randrange(1, 5) * 400_000,
            size=(1 if is_image else rng.choice([3, 5]), 8, rng.choice([8, 12])),
            phash="-".join(f"{rng.getrandbits(64):016x}" for _ in range(1 if is_image else 3)),
            kept=rng.random() < 0.8,
        )
        found.setdefault(one.clip_id, one)
    return list(found.values())


def write_table(folder: Path, clips: Iterable[TestClip]) -> ArtifactRecord:
    """A `clips` artifact."""
    folder.mkdir(parents=True)
    rows = [{**c.facts(), "kept": c.kept} for c in clips]
    schema = pa.schema(
        [(n, pa.int64() if n.endswith("_us") else pa.string()) for n in TestClip("s", "i").facts()]
        + [("kept", pa.bool_())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "clips.parquet")
    return recorded(folder, ArtifactKind.CLIPS)


def write_dataset(folder: Path, shards: Sequence[Sequence[TestClip]]) -> ArtifactRecord:
    """A `dataset` artifact; equal shards have equal bytes, whatever their number."""
    (folder / "shards").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for number, shard in enumerate(shards):
        name = f"{number:06d}.tar"
        (folder / "shards" / name).write_bytes(json.dumps([c.sample_id for c in shard]).encode())
        for one in shard:
            t, h, w = one.size
            row = {f.name: 0 if pa.types.is_integer(f.type) else "" for f in SCHEMA}
            rows.append(
                {**row, **one.facts(), "sample_id": one.sample_id, "shard": name,
                 "bucket_t": t, "bucket_h": h, "bucket_w": w}
            )  # fmt: skip
    write_index(folder / "index.parquet", rows)
    return recorded(folder, ArtifactKind.DATASET)


def write_listing(folder: Path, name: str, urls: dict[str, str | None]) -> ArtifactRecord:
    """A `source` artifact: source id -> URL."""
    folder.mkdir(parents=True)
    extra = [json.dumps({"url": url, "title": "x"} if url else {}) for url in urls.values()]
    pq.write_table(pa.table({"source_id": list(urls), "extra": extra}), folder / "listing.parquet")
    (folder / "source.json").write_text(json.dumps({"name": name}))
    return recorded(folder, ArtifactKind.SOURCE)


def shards_of(clips: Sequence[TestClip], rows: int = SHARD_ROWS) -> list[list[TestClip]]:
    """As `encode` packs them: by bucket and sample id."""
    ordered = sorted((c for c in clips if c.kept), key=lambda c: (c.size, c.sample_id))
    return [list(ordered[n : n + rows]) for n in range(0, len(ordered), rows)]


def without(shards: Sequence[Sequence[TestClip]], gone: set[str]) -> list[list[TestClip]]:
    """As a removal does: untouched shards first, then what stays of the others packed anew."""
    shared = [list(s) for s in shards if not any(c.clip_id in gone for c in s)]
    moved = [c for s in shards if any(c.clip_id in gone for c in s) for c in s if c.clip_id not in gone]
    return shared + shards_of([replace(c, kept=True) for c in moved])


def recorded(folder: Path, kind: ArtifactKind) -> ArtifactRecord:
    """The record of a folder that is made an artifact."""
    manifest = build_manifest(folder, kind, {})
    write_manifest(folder, manifest)
    return ArtifactRecord(
        artifact_id=manifest.artifact_id, kind=kind, uri=Storage(str(folder)).uri,
        size_bytes=manifest.size_bytes, files=len(manifest.files),
    )  # fmt: skip
