"""A dataset version on the page: buckets with tokens and bytes, encoders, sources, reconstructions. No HTML here."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from m4v.core.artifacts import Artifact
from m4v.core.shard_index import INDEX
from pipelines.web.media import MediaBudget
from pipelines.web.sections.curation import Reconstruction
from pipelines.web.sections.inputs import read_json

_COLUMNS = [
    "source",
    "media",
    "bucket_t",
    "bucket_h",
    "bucket_w",
    "tokens",
    "captions",
    "licence",
    "latent_size",
    "text_size",
]
_PIXELS, _FRAMES = 8, 8  # of one latent cell


@dataclass(frozen=True)
class BucketRow:
    """`share`: of the dataset's tokens."""

    media: str
    frames: int
    height: int
    width: int
    latent: tuple[int, int, int]
    samples: int
    tokens_each: int
    tokens: int
    size_bytes: int
    share: float


@dataclass(frozen=True)
class Dataset:
    artifact_id: str
    buckets: tuple[BucketRow, ...]
    samples: int
    tokens: int
    captions: int
    size_bytes: int
    shards: int
    sources: tuple[tuple[str, int], ...]
    licences: tuple[tuple[str, int], ...]
    facts: tuple[tuple[str, str], ...]
    reconstructions: tuple[Reconstruction, ...]
    reconstructed: int
    psnr_mean: float | None


def gather(artifact: Artifact, media: MediaBudget, shown: int) -> Dataset:
    rows = _Counted(artifact)
    facts = read_json(artifact, "dataset.json")
    clips: list[dict[str, Any]] = []
    if "reconstructions.json" in artifact.names():
        clips = read_json(artifact, "reconstructions.json")["clips"]
    psnr = [float(c["psnr_db"]) for c in clips]
    return Dataset(
        artifact_id=artifact.id, buckets=rows.buckets(), samples=rows.samples, tokens=rows.tokens,
        captions=rows.captions, size_bytes=rows.size_bytes,
        shards=len([n for n in artifact.names("shards/") if n.endswith(".tar")]) or int(facts.get("shards", 0)),
        sources=_most(rows.sources), licences=_most(rows.licences), facts=_facts(facts),
        reconstructions=tuple(
            Reconstruction(
                clip_id=c["clip_id"], caption=c["caption"], psnr_db=c["psnr_db"], source=c["source"],
                uri=media.embed(artifact.path(c["file"])), width=2 * c["width"], height=c["height"],
            )
            for c in clips[:shown]
        ),
        reconstructed=len(clips), psnr_mean=sum(psnr) / len(psnr) if psnr else None,
    )  # fmt: skip


class _Counted:
    """One pass over the index, batch by batch."""

    def __init__(self, artifact: Artifact) -> None:
        self.samples = self.tokens = self.captions = self.size_bytes = 0
        self.sources: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self._buckets: dict[tuple[str, int, int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        for batch in pq.ParquetFile(artifact.path(INDEX), pre_buffer=False).iter_batches(columns=_COLUMNS):
            for row in batch.to_pylist():
                self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        size = row["latent_size"] + row["text_size"]
        bucket = self._buckets[(row["media"], row["bucket_t"], row["bucket_h"], row["bucket_w"])]
        bucket[0], bucket[1], bucket[2] = bucket[0] + 1, bucket[1] + row["tokens"], bucket[2] + size
        self.samples += 1
        self.tokens += row["tokens"]
        self.captions += row["captions"]
        self.size_bytes += size
        self.sources[row["source"]] += 1
        self.licences[row["licence"] or "unstated"] += 1

    def buckets(self) -> tuple[BucketRow, ...]:
        return tuple(
            BucketRow(
                media=media, frames=_FRAMES * (t - 1) + 1, height=_PIXELS * h, width=_PIXELS * w, latent=(t, h, w),
                samples=samples, tokens_each=tokens // samples, tokens=tokens, size_bytes=size,
                share=tokens / self.tokens if self.tokens else 0.0,
            )
            for (media, t, h, w), (samples, tokens, size) in sorted(self._buckets.items())
        )  # fmt: skip


def _most(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda p: (-p[1], p[0])))


def _facts(facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What samples of this dataset mean: encoders by kind and digest, sampling rate, what it was made from."""
    found = [
        (name.replace("_", " "), f"{facts[name]['config'].get('kind', '')} {facts[name]['digest'][:12]}")
        for name in ("codec", "text_encoder")
        if isinstance(facts.get(name), dict)
    ]
    if "fps" in facts:
        found.append(("sampling rate", f"{facts['fps']:g} fps"))
    version = facts.get("version")
    if isinstance(version, dict):
        found.append(("made by", str(version["operation"]["kind"])))
        found += [("from", str(p["artifact_id"] if isinstance(p, dict) else p)[:12]) for p in version["parents"]]
        found += [(f"weight of {m['name']}", f"{m['weight']:g}") for m in version["mixture"]]
    return tuple(found)
