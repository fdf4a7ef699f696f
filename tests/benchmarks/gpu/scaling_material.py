"""What the scaling benchmark trains on: shards of drawn clips, random initial weights, compiled kernels.

    python tests/benchmarks/gpu/scaling_material.py dataset|weights|kernels FOLDER [--size full] [--deterministic]

Latents are the transform codec's of drawn clips of 241 frames, written by the product's shard writer; a handful of
distinct clips comes again under other ids. Text features are random. Weights are drawn on the device.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from random_model import random_model
from safetensors.torch import save
from torch import Tensor

from dataprep.buckets import Bucket
from dataprep.encode.dataset import codec_facts
from dataprep.encode.jobs import latent_member
from dataprep.shards import SHARDS, Sample, ShardWriter
from dataprep.sources.config import SyntheticConfig
from dataprep.sources.synthetic import captions_of, render, scene_of
from m4v.checkpoint import save_checkpoint
from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import canonical_json, digest_bytes
from m4v.core.ids import clip_id, sample_id
from m4v.core.shard_index import INDEX, write_index
from m4v.deterministic import use_deterministic
from m4v.flow.packing import history_shape
from m4v.text.config import MiniLmConfig, T5ClipConfig, TextEncoderConfig
from training.exposure import TRAINING_STATE, ExposureState

FRAMES = 241
DISTINCT, SAMPLES = 6, 48
SOURCE = "openvid"  # the recipe's stages name their sources
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Size:
    """A model, its text features, and pixels of the clips."""

    model: ModelConfig
    text: TextEncoderConfig
    height: int
    width: int


SIZES = {
    "full": Size(ModelConfig(), T5ClipConfig(weights="text"), 768, 1280),
    "tiny": Size(
        ModelConfig(width=64, heads=2, double_blocks=1, single_blocks=2, text_dim=384, pooled_dim=384, text_slots=8),
        MiniLmConfig(slots=8), 64, 64,
    ),
}  # fmt: skip


def encoded_clip(job: tuple[int, int, int]) -> tuple[bytes, list[str]]:
    """Latent member and captions of a drawn clip (number, height, width)."""
    number, height, width = job
    torch.set_num_threads(1)
    scene = scene_of(SyntheticConfig(), number, still=False)
    return latent_member(open_codec(DctCodecConfig()), render(scene, FRAMES, height, width)), captions_of(scene, 2)


def text_features(texts: list[str], model: ModelConfig) -> dict[str, Tensor]:
    generators = [torch.Generator().manual_seed(int(digest_bytes(text.encode())[:8], 16)) for text in texts]
    used = torch.tensor([[min(model.text_slots, 2 + len(text.split()))] for text in texts])
    mask = torch.arange(model.text_slots)[None] < used
    embedding = torch.stack([torch.randn(model.text_slots, model.text_dim, generator=g) for g in generators])
    pooled = torch.stack([torch.randn(model.pooled_dim, generator=g) for g in generators])
    return {"embedding": embedding * mask[..., None], "mask": mask, "pooled": pooled}


def samples(size: Size) -> Iterator[tuple[Sample, dict[str, object]]]:
    """Samples in the order of their ids, with their rows of the index; places are added by who writes them."""
    bucket = Bucket(FRAMES, size.height, size.width)
    t, h, w = bucket.latent
    jobs = [(number, size.height, size.width) for number in range(DISTINCT)]
    with ProcessPoolExecutor(DISTINCT) as pool:
        clips = list(pool.map(encoded_clip, jobs))
    owners = [clip_id(SOURCE, f"{number}", 0, 10_000_000) for number in range(SAMPLES)]
    keyed = sorted((sample_id(owner, "scaling", bucket.name), n, owner) for n, owner in enumerate(owners))
    for key, number, owner in keyed:
        latent, captions = clips[number % DISTINCT]
        text = save(text_features(captions, size.model))
        members = {"latent": latent, "text": text, "meta": json.dumps({"captions": captions}).encode()}
        yield Sample(key, bucket.name, members), {
            "sample_id": key, "clip_id": owner, "source": SOURCE, "source_id": f"{number}",
            "source_digest": digest_bytes(f"{number}".encode()), "start_us": 0, "end_us": 10_000_000,
            "phash": "0" * 16, "media": "video", "bucket_t": t, "bucket_h": h, "bucket_w": w, "tokens": bucket.tokens,
            "captions": len(captions), "caption_digest": digest_bytes(captions[0].encode()), "licence": "CC0-1.0",
        }  # fmt: skip


def write_dataset(folder: Path, size: Size) -> str:
    """Shards, index and facts; the artifact's id."""
    rows = []
    with ShardWriter(folder / SHARDS, samples=SAMPLES, size_bytes=SHARD_BYTES) as writer:
        for sample, row in samples(size):
            for name, place in writer.add(sample).items():
                row |= {
                    "shard": place.shard, f"{name}_offset": place.offset, f"{name}_size": place.size_bytes,
                    f"{name}_sha256": place.sha256,
                }  # fmt: skip
            rows.append(row)
    write_index(folder / INDEX, rows)
    config = DctCodecConfig()
    facts = {
        "codec": codec_facts(config, open_codec(config)), "text_encoder": {"config": size.text.canonical()},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(facts))
    (folder / "null_text.safetensors").write_bytes(save(text_features([""], size.model)))
    return finish(folder, ArtifactKind.DATASET)


def write_weights(folder: Path, size: Size, device: str) -> str:
    """A checkpoint as stage `init` leaves it; the artifact's id."""
    config = CheckpointConfig(
        model=size.model, schedule=ScheduleConfig(corruption="linear", corruption_ratio=1 / 3),
        codec=DctCodecConfig().model_dump(mode="json"), text_encoder=size.text.model_dump(mode="json"),
    )  # fmt: skip
    save_checkpoint(folder, config, random_model(size.model, device).state_dict())
    exposure = ExposureState(
        stage="init", dataset_id=None, order=None, seed=0, global_batch=(), cursor=0, init_from=None
    )
    (folder / TRAINING_STATE).write_bytes(canonical_json(exposure.canonical()))
    return finish(folder, ArtifactKind.CHECKPOINT)


def finish(folder: Path, kind: ArtifactKind) -> str:
    manifest = build_manifest(folder, kind, {})
    write_manifest(folder, manifest)
    (folder.parent / f"{folder.name}.id").write_text(manifest.artifact_id)
    return manifest.artifact_id


def compile_kernels(size: Size, device: str, deterministic: bool) -> None:
    """Forward and backward of two blocks at the benchmark's shapes, so that no case waits for compilers."""
    if deterministic:
        use_deterministic()
    config = size.model.model_copy(update={"double_blocks": 1, "single_blocks": 2})
    model = random_model(config, device)
    model.recompute, model.recompute_blocks = "selective", 2
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    h, w = size.height // 8, size.width // 8
    for units in ((16, 9, 8, 1), (8, 3, 5, 7), (30, 12, 16, 16)):
        stages = [0, 1, 1, 2]
        clips = [
            [normal(1, 16, n, h >> (2 - s), w >> (2 - s)) for s, n in [*history_shape(stage, unit), (stage, 1)]]
            for stage, unit in zip(stages, units, strict=True)
        ]
        text = normal(4, config.text_slots, config.text_dim)
        mask = torch.ones(4, config.text_slots, dtype=torch.bool, device=device)
        pooled, steps = normal(4, config.pooled_dim), torch.full((4,), 500.0, device=device)
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            outs = model(clips, steps, text, mask, pooled, stages)
            loss = torch.stack([out.float().square().mean() for out in outs]).sum()
        loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dataset", "weights", "kernels"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    size, folder = SIZES[options.size], options.folder / options.what
    folder.mkdir(parents=True, exist_ok=True)
    if options.what == "dataset":
        write_dataset(folder, size)
    elif options.what == "weights":
        write_weights(folder, size, options.device)
    else:
        compile_kernels(size, options.device, options.deterministic)


if __name__ == "__main__":
    main()
