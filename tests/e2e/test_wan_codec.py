"""From videos to a generated one with Wan's VAE as the codec: four frames a latent all the way, with its constants."""

import os
import subprocess
import sys
from pathlib import Path

import encode_support
import numpy as np
import pytest
from training_helpers import publish, request

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from tiny_wan_vae import write_tiny_wan_vae

from dataprep.stages import encode
from m4v.codec.config import WanVaeConfig
from m4v.config import ModelConfig, SamplerConfig
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, read_manifest, write_manifest
from m4v.core.stage import InputRef, Resources, StageContext, read_exits
from m4v.core.storage import Storage
from m4v.sampling import CheckpointSampler
from m4v.text.config import MiniLmConfig
from training.config import InitConfig, OptimizerConfig, OrderConfig, TrainConfig
from training.encoders import check_samples
from training.stages import init

pytestmark = pytest.mark.deep

CODEC, TEXT = WanVaeConfig(weights="wan"), MiniLmConfig(slots=8)
MODEL = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=8, mlp_ratio=2
)
ORDER = OrderConfig(frames=13, min_frames=5, time_stride=4, tokens_per_pack=80, packs=1, image_every=0)
TRAIN = TrainConfig(name="13f", steps=2, order=ORDER, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0), ema_decay=0)
ENCODE = {
    "codec": CODEC.canonical(), "text_encoder": TEXT.canonical(), "reconstructions": 0,
    "buckets": {"frames": [5, 13, 21], "sizes": [[64, 64]]},
}  # fmt: skip


def encoded(root: Path, weights: InputRef) -> tuple[str, Path]:
    bench = encode_support.make_bench(root, videos=3, images=0)
    given = bench.request(root / "encode", ENCODE, root / "items", Resources())
    context = StageContext(given.model_copy(update={"inputs": (*given.inputs, weights)}))
    encode.run(context)
    context.progress.close()
    folder = context.output("dataset")
    manifest = build_manifest(folder, ArtifactKind.DATASET, {})
    write_manifest(folder, manifest)
    return manifest.artifact_id, folder


def test_a_model_learns_and_generates_in_latents_of_wans_vae(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    write_tiny_wan_vae(folder / "vae")
    manifest = build_manifest(folder, ArtifactKind.WEIGHTS, {})
    write_manifest(folder, manifest)
    given = ("weights.wan", ArtifactKind.WEIGHTS, manifest.artifact_id, folder)
    dataset, place = encoded(
        tmp_path, InputRef(name=given[0], kind=given[1], artifact_id=given[2], uri=str(folder))
    )  # fmt: skip
    check_samples(Artifact(str(place), dataset, ArtifactKind.DATASET, tmp_path / "cache"), ORDER)

    start = StageContext(
        request("init", InitConfig(model=MODEL, codec=CODEC, text_encoder=TEXT), tmp_path / "init", [given])
    )
    init.run(start)
    start.progress.close()
    checkpoint, begun = publish(start)

    work = tmp_path / "train"
    inputs = [
        ("dataset", ArtifactKind.DATASET, dataset, place),
        ("checkpoint", ArtifactKind.CHECKPOINT, checkpoint, begun),
    ]
    (work / "request.json").parent.mkdir()
    (work / "request.json").write_text(request("train", TRAIN, work, inputs).model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.stage_process", str(work / "request.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (read_exits(work), done.stderr[-2000:])
    summary = read_manifest(Storage(str(work / "staging" / "checkpoint"))).summary
    assert [stream["latent"] for stream in summary["order"]["streams"]] == [[4, 8, 8]]

    sampler = CheckpointSampler.open(work / "staging" / "checkpoint", ema=False, folders={"wan": folder})
    few = SamplerConfig(steps_first=(1, 1, 1), steps_later=(1, 1, 1))
    video = sampler.generate("a square", frames=9, height=64, width=64, sampler=few)
    assert (video.frames.shape, video.latent.shape) == ((9, 64, 64, 3), (16, 3, 8, 8))
    assert np.isfinite(video.latent).all()
