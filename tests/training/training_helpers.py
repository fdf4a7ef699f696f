"""A small dataset version in the documented layout, a tiny model, and requests for stages, for tests."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from m4v.codec.config import DctCodecConfig
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_bytes
from m4v.core.config import FrozenModel
from m4v.core.ids import clip_id, sample_id
from m4v.core.shard_index import INDEX, MEMBER_SUFFIX, write_index
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest
from m4v.text.config import MiniLmConfig

TEXT = MiniLmConfig(slots=8)
CAPTIONS = ("a red circle moves left", "a blue square moves up", "green stripes", "a yellow star turns")


@dataclass(frozen=True)
class Clip:
    """A synthetic sample: latent frames t (1 = image) of h x w places."""

    number: int
    t: int
    h: int = 8
    w: int = 8
    source: str = "shapes"
    broken: bool = False  # holds a value that is not a number


def clips(videos: int, images: int, t: int = 3, h: int = 8, w: int = 8) -> list[Clip]:
    return [Clip(i, t if i < videos else 1, h, w) for i in range(videos + images)]


def write_dataset(directory: Path, samples: Sequence[Clip], per_shard: int = 8) -> str:
    """Write shards, index and manifest; returns the artifact id. Latents are a flat colour per caption plus a
    little texture, so that there is something to learn."""
    (directory / "shards").mkdir(parents=True)
    rows = []
    for first in range(0, len(samples), per_shard):
        name = f"{first // per_shard:06d}.tar"
        with tarfile.open(directory / "shards" / name, "w") as tar:
            for clip in samples[first : first + per_shard]:
                rows.append(_row(clip, name, tar))
    write_index(directory / INDEX, rows)
    facts = {
        "codec": {"config": DctCodecConfig().canonical()},
        "text_encoder": {"config": TEXT.canonical()},
    }
    (directory / "dataset.json").write_text(json.dumps(facts))
    (directory / "null_text.safetensors").write_bytes(save(_features([""])))
    manifest = build_manifest(directory, ArtifactKind.DATASET, {"samples": len(rows)})
    write_manifest(directory, manifest)
    return manifest.artifact_id


def latent_of(clip: Clip) -> torch.Tensor:
    caption = clip.number % len(CAPTIONS)
    generator = torch.Generator().manual_seed(1000 + caption)
    colour = torch.randn(16, 1, 1, 1, generator=generator) * 2
    texture = torch.randn(16, clip.t, clip.h, clip.w, generator=torch.Generator().manual_seed(clip.number)) * 0.3
    latent = (colour + texture).to(torch.bfloat16)
    if clip.broken:
        latent[3] = float("nan")
    return latent


def _features(texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Random features that depend on the text alone, in the sizes of the packaged encoder."""
    rows = [torch.Generator().manual_seed(int(digest_bytes(text.encode())[:8], 16)) for text in texts]
    embedding = torch.stack([torch.randn(TEXT.slots, TEXT.embedding_dim, generator=g) for g in rows])
    mask = torch.arange(TEXT.slots)[None] < torch.tensor([[min(TEXT.slots, 2 + len(t.split()))] for t in texts])
    return {
        "embedding": embedding * mask[..., None],
        "mask": mask,
        "pooled": torch.stack([torch.randn(TEXT.pooled_dim, generator=g) for g in rows]),
    }


def _row(clip: Clip, shard: str, tar: tarfile.TarFile) -> dict[str, object]:
    media = "image" if clip.t == 1 else "video"
    owner = clip_id(clip.source, f"{clip.number}", 0, 0 if media == "image" else 1_000_000)
    key = sample_id(owner, "tests", f"{clip.t}x{clip.h}x{clip.w}")
    caption = CAPTIONS[clip.number % len(CAPTIONS)]
    members = {
        "latent": save({"mean": latent_of(clip)}),
        "text": save(_features([caption, caption + " on grey"])),
        "meta": json.dumps({"captions": [caption, caption + " on grey"]}).encode(),
    }
    row: dict[str, object] = {
        "sample_id": key, "clip_id": owner, "source": clip.source, "source_id": f"{clip.number}",
        "source_digest": hashlib.sha256(str(clip.number).encode()).hexdigest(), "start_us": 0,
        "end_us": 0 if media == "image" else 1_000_000, "phash": "0" * 16, "media": media, "shard": shard,
        "bucket_t": clip.t, "bucket_h": clip.h, "bucket_w": clip.w, "tokens": clip.t * clip.h * clip.w // 4,
        "captions": 2, "caption_digest": digest_bytes(caption.encode()), "licence": "CC0-1.0",
    }  # fmt: skip
    for name, data in members.items():
        info = tarfile.TarInfo(f"{key}.{MEMBER_SUFFIX[name]}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        offset = tar.offset - (-(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        row |= {f"{name}_offset": offset, f"{name}_size": len(data), f"{name}_sha256": digest_bytes(data)}
    return row


def request(
    stage: str,
    config: FrozenModel,
    work: Path,
    inputs: Sequence[tuple[str, ArtifactKind, str, Path]] = (),
    *,
    seed: int = 7,
    ranks: int = 1,
    attempt: str = "attempt-1",
    state: Path | None = None,
    device: str = "cpu",
    deterministic: bool = True,
) -> StageRequest:
    """A stage request on local folders; `inputs` are (name, kind, artifact id, folder)."""
    work.mkdir(parents=True, exist_ok=True)
    return StageRequest(
        stage=stage,
        stage_version=1,
        function=f"training.stages.{stage}:run",
        config_model=f"training.config:{type(config).__name__}",
        stage_key="0" * 64,
        attempt_id=attempt,
        config=config.canonical(),
        seed=seed,
        inputs=tuple(InputRef(name=n, kind=k, artifact_id=i, uri=str(p)) for n, k, i, p in inputs),
        outputs=(OutputRef(name="checkpoint", kind=ArtifactKind.CHECKPOINT),),
        store_uri=str(work / "store"),
        work_dir=str(work),
        state_uri=str(state or work / "state"),
        items_uri=str(work / "items"),
        resources=Resources(ranks=ranks, threads=1, workers=1, device=device),
        # What a plan would promise: the stage process switches to deterministic operations for it.
        numerics={"device": device, "deterministic": deterministic},
    )


def publish(context: StageContext, kind: ArtifactKind = ArtifactKind.CHECKPOINT) -> tuple[str, Path]:
    """Manifest of a finished stage's staged output: (artifact id, folder)."""
    directory = context.output("checkpoint")
    manifest = build_manifest(directory, kind, context.summaries().get("checkpoint", {}))
    write_manifest(directory, manifest)
    return manifest.artifact_id, directory
