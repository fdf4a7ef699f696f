"""Small drawn datasets in a store, and the version stage run on them as a stage process would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from dataprep.encode.dataset import DATASET, NULL_TEXT, write_facts
from dataprep.quarantine import QUARANTINE, QuarantineRow, write_quarantine
from dataprep.shards import SHARDS, Sample, ShardWriter
from dataprep.stages import version
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import canonical_json, digest_json
from m4v.core.ids import clip_id, sample_id
from m4v.core.shard_index import INDEX, iterate, read_index, write_index
from m4v.core.stage import RESULT, InputRef, OutputRef, OutputResult, StageContext, StageRequest, StageResult
from pipelines.stage_process import write_result
from pipelines.store import ArtifactRecord, ArtifactStore

ENCODER = digest_json("the encoders of these tests")
SIZES = {"video": (17, 64, 128, (3, 8, 16)), "image": (1, 64, 64, (1, 8, 8))}


@dataclass(frozen=True)
class Clip:
    """One drawn sample; what decides its bytes is `source_id`, `caption` and `seed`."""

    source_id: str
    source: str = "mine"
    media: str = "video"
    start_us: int = 0
    end_us: int = 1_000_000
    caption: str = "a square moves"
    phash: str = "00000000000000ff"
    seed: int = 0

    @property
    def clip_id(self) -> str:
        return clip_id(self.source, self.source_id, self.start_us, self.end_us)

    def sample_id(self, encoder: str = ENCODER) -> str:
        frames, height, width, _ = SIZES[self.media]
        return sample_id(self.clip_id, encoder, f"{frames}x{height}x{width}")

    def sample(self, encoder: str = ENCODER) -> Sample:
        frames, height, width, latent = SIZES[self.media]
        rng = np.random.default_rng([self.seed, *self.source_id.encode()])
        mean = torch.from_numpy(rng.standard_normal((16, *latent), np.float32)).bfloat16()
        text = {
            "embedding": torch.ones(1, 4, 8),
            "mask": torch.ones(1, 4, dtype=torch.bool),
            "pooled": torch.ones(1, 8),
        }
        meta = {
            "sample_id": self.sample_id(encoder), "clip_id": self.clip_id, "caption": self.caption,
            "captions": [self.caption], "caption_digest": digest_json([self.caption]), "source": self.source,
            "source_id": self.source_id, "source_digest": "f" * 64, "start_us": self.start_us, "end_us": self.end_us,
            "media": self.media, "licence": "CC0-1.0", "phash": self.phash, "frames": frames, "height": height,
            "width": width,
        }  # fmt: skip
        members = {"latent": save({"mean": mean}), "text": save(text), "meta": canonical_json(meta)}
        return Sample(self.sample_id(encoder), f"{frames}x{height}x{width}", members)

    def row(self, encoder: str = ENCODER) -> dict[str, object]:
        t, h, w = SIZES[self.media][3]
        return {
            "sample_id": self.sample_id(encoder), "clip_id": self.clip_id, "source": self.source,
            "source_id": self.source_id, "source_digest": "f" * 64, "start_us": self.start_us,
            "end_us": self.end_us, "phash": self.phash, "media": self.media, "bucket_t": t, "bucket_h": h,
            "bucket_w": w, "tokens": t * h * w // 4, "captions": 1, "caption_digest": digest_json([self.caption]),
            "licence": "CC0-1.0",
        }  # fmt: skip


def videos(*names: str, source: str = "mine") -> list[Clip]:
    return [Clip(name, source) for name in names]


def write_dataset(directory: Path, clips: list[Clip], *, samples: int = 3, encoder: str = ENCODER) -> None:
    """A dataset as encode leaves it, `samples` to a shard."""
    ordered = sorted(clips, key=lambda c: (SIZES[c.media], c.sample_id(encoder)))
    rows = []
    with ShardWriter(directory / SHARDS, samples=samples, size_bytes=1 << 30) as writer:
        for clip in ordered:
            row = clip.row(encoder)
            for name, reference in writer.add(clip.sample(encoder)).items():
                row |= {
                    "shard": reference.shard, f"{name}_offset": reference.offset,
                    f"{name}_size": reference.size_bytes, f"{name}_sha256": reference.sha256,
                }  # fmt: skip
            rows.append(row)
    write_index(directory / INDEX, rows)
    media = sorted({c.media for c in clips})
    buckets = [
        {
            "media": m, "frames": SIZES[m][0], "height": SIZES[m][1], "width": SIZES[m][2],
            "latent": list(SIZES[m][3]), "tokens": 0, "samples": sum(c.media == m for c in clips),
        }
        for m in media
    ]  # fmt: skip
    facts = {
        "schema_version": 1, "codec": {"digest": "c"}, "text_encoder": {"digest": "t"}, "encoder_digest": encoder,
        "fps": 24.0, "buckets": buckets, "samples": len(clips),
    }  # fmt: skip
    write_facts(directory / DATASET, facts)
    (directory / NULL_TEXT).write_bytes(save({"embedding": torch.zeros(1, 4, 8)}))
    write_quarantine(directory / QUARANTINE, [QuarantineRow(clips[0].source, "q", "q.mp4", "too_short", "", "encode")])
    (directory / "reconstructions").mkdir()
    shown = [{"clip_id": c.clip_id, "file": f"reconstructions/{c.clip_id}.mp4"} for c in ordered[:2]]
    for one, clip in zip(shown, ordered, strict=False):
        (directory / one["file"]).write_bytes(clip.source_id.encode())
    write_facts(directory / "reconstructions.json", {"layout": "side by side", "clips": shown})


@dataclass
class Versions:
    """A store with datasets; `apply` runs the version stage and publishes what it made."""

    root: Path
    store_uri: str
    made: int = 0
    metrics: dict[str, object] = field(default_factory=dict)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.store_uri)

    def dataset(self, clips: list[Clip], **options: object) -> Artifact:
        self.made += 1
        staging = self.root / f"drawn-{self.made}"
        write_dataset(staging, clips, **options)  # type: ignore[arg-type]
        manifest = build_manifest(staging, ArtifactKind.DATASET, {})
        write_manifest(staging, manifest)
        output = OutputResult(
            name="dataset", kind=ArtifactKind.DATASET, artifact_id=manifest.artifact_id, staging=str(staging),
            size_bytes=manifest.size_bytes, files=len(manifest.files),
        )  # fmt: skip
        return self._artifact(self.store.publish(output))

    def _artifact(self, record: ArtifactRecord) -> Artifact:
        return Artifact(record.uri, record.artifact_id, ArtifactKind.DATASET, self.root / f"cache-{self.made}")

    def context(self, config: dict[str, object], parents: tuple[Artifact, ...]) -> StageContext:
        self.made += 1
        work = self.root / f"work-{self.made}"
        inputs = [
            InputRef(name=f"dataset.{n}", kind=a.kind, artifact_id=a.id, uri=a.storage.uri)
            for n, a in enumerate(parents)
        ]
        request = StageRequest(
            stage="version", stage_version=1, function="dataprep.stages.version:run",
            config_model="dataprep.versions.config:VersionConfig", stage_key="k", attempt_id="a", config=config, seed=0,
            inputs=tuple(inputs), outputs=(OutputRef(name="dataset", kind=ArtifactKind.DATASET),),
            store_uri=self.store_uri, work_dir=str(work), state_uri=str(work / "state"),
            items_uri=str(self.root / "items"),
        )  # fmt: skip
        return StageContext(request)

    def stage(self, operation: dict[str, object], *parents: Artifact, **config: object) -> OutputResult:
        """Run the stage; its output is staged, not published."""
        context = self.context({"operation": operation, **config}, parents)
        try:
            version.run(context)
        finally:
            context.progress.close()
        write_result(context, None)
        result = StageResult.model_validate_json((context.work_dir / RESULT).read_bytes())
        self.metrics = dict(result.metrics)
        return result.outputs[0]

    def apply(self, operation: dict[str, object], *parents: Artifact, **config: object) -> Artifact:
        return self._artifact(self.store.publish(self.stage(operation, *parents, **config)))


def rows_of(artifact: Artifact) -> dict[str, dict[str, object]]:
    """Index rows by source id."""
    return {str(row["source_id"]): row for row in iterate(read_index(artifact.path(INDEX)))}


def facts_of(artifact: Artifact) -> dict[str, object]:
    found: dict[str, object] = json.loads(artifact.path(DATASET).read_bytes())
    return found


def shard_digests(artifact: Artifact) -> dict[str, str]:
    """sha256 -> path of every shard."""
    return {f.sha256: f.path for f in artifact.manifest.files if f.path.startswith(f"{SHARDS}/")}
