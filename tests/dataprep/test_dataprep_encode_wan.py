"""Clips encoded with Wan's VAE, four frames a latent; and what every sample says of its encoders and its frames."""

import json
import re
import sys
from pathlib import Path

import encode_support as support
import numpy as np
import pytest
from safetensors.torch import load

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from tiny_wan_vae import write_tiny_wan_vae

from dataprep.buckets import Bucket, video_buckets
from dataprep.config import EncodeConfig
from dataprep.encode.dataset import encoder_facts
from dataprep.media.index import frame_index
from dataprep.stages.encode import run
from dataprep.versions.check import check_dataset
from m4v.codec import open_codec
from m4v.codec.config import WanVaeConfig
from m4v.core.artifacts import ArtifactKind, build_manifest, read_manifest, write_manifest
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.shard_index import iterate, member, read_index, read_member
from m4v.core.stage import InputRef, Resources, StageContext
from m4v.core.storage import Storage
from m4v.video_io import read_mp4

CODEC = WanVaeConfig(weights="wan")
CONFIG: dict[str, object] = {
    "buckets": {"frames": [5, 13, 21], "sizes": [[48, 80], [64, 64]]},
    "codec": CODEC.canonical(),
    "text_encoder": {"slots": 16},
    "reconstructions": 2,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> support.Bench:
    return support.make_bench(tmp_path_factory.mktemp("encode_wan"), videos=2, images=1)


@pytest.fixture(scope="module")
def weights(bench: support.Bench) -> Path:
    folder = bench.root / "weights"
    write_tiny_wan_vae(folder / "vae")
    write_manifest(folder, build_manifest(folder, ArtifactKind.WEIGHTS, {}))
    return folder


def encode(bench: support.Bench, weights: Path, name: str, **changes: object) -> tuple[Path, StageContext]:
    work = bench.root / name
    reference = InputRef(
        name="weights.wan", kind=ArtifactKind.WEIGHTS, uri=str(weights),
        artifact_id=read_manifest(Storage(str(weights))).artifact_id,
    )  # fmt: skip
    request = bench.request(work, {**CONFIG, **changes}, bench.root / "items", Resources())
    context = StageContext(request.model_copy(update={"inputs": (*request.inputs, reference)}))
    try:
        run(context)
    finally:
        context.progress.close()
    return work / "staging" / "dataset", context


@pytest.fixture(scope="module")
def dataset(bench: support.Bench, weights: Path) -> Path:
    return encode(bench, weights, "wan")[0]


def metas(dataset: Path) -> dict[str, dict[str, object]]:
    found = (json.loads(read_member(dataset / "shards", member(r, "meta"))) for r in iterate(rows(dataset)))
    return {str(meta["source_id"]): meta for meta in found}


def rows(dataset: Path):
    return read_index(dataset / "index.parquet")


def test_frames_become_latents_four_by_four(bench: support.Bench, weights: Path, dataset: Path) -> None:
    found = {str(r["source_id"]): r for r in iterate(rows(dataset))}
    sizes = {name: (r["bucket_t"], r["bucket_h"], r["bucket_w"], r["tokens"]) for name, r in found.items()}
    # 20 frames fill 13, 28 frames fill 21
    assert sizes == {"video-0.mp4": (4, 6, 10, 60), "video-1.mp4": (6, 6, 10, 90), "image-0.png": (1, 8, 8, 16)}
    facts = json.loads((dataset / "dataset.json").read_text())
    codec = open_codec(CODEC, {"wan": weights})
    assert (facts["codec"]["digest"], facts["codec"]["time_stride"]) == (codec.digest, 4)
    assert facts["codec"]["normalisation"] == codec.constants.to_json()
    assert [(b["frames"], b["latent"][0]) for b in facts["buckets"]] == [(1, 1), (13, 4), (21, 6)]
    stored = load(read_member(dataset / "shards", member(found["video-0.mp4"], "latent")))["mean"]
    frames, _ = read_mp4(bench.location / "video-0.mp4")
    expected = codec.encode(np.ascontiguousarray(frames[:13, 16:64, 24:104]))
    assert stored.shape == expected.shape
    assert list(check_dataset(Storage(str(dataset)))) == []


def test_every_sample_names_its_encoders_and_the_times_of_its_frames(bench: support.Bench, dataset: Path) -> None:
    facts = json.loads((dataset / "dataset.json").read_text())
    found = metas(dataset)
    for meta in found.values():
        assert {name: meta[name] for name in encoder_facts(facts)} == encoder_facts(facts)
        assert set(encoder_facts(facts)) == {"codec", "text_encoder", "encoder_digest"}
    index = frame_index(bench.location / "video-1.mp4")
    assert found["video-1.mp4"]["frame_times_us"] == [index.microseconds(n) for n in range(21)]
    assert found["video-1.mp4"]["frame_times_us"][1] == 41667  # type: ignore[index]
    assert found["image-0.png"]["frame_times_us"] == [0]


def test_times_are_of_the_frames_that_were_taken(bench: support.Bench, weights: Path) -> None:
    """At half the rate every second frame, from where the clip begins."""
    row = dict(next(r for r in bench.rows if r["source_id"] == "video-1.mp4"), first_frame=4, frames=24)
    part = support.Bench(bench.root, bench.source, [row], bench.location)
    buckets = {"frames": [5, 9], "sizes": [[48, 80]], "fps": 12}
    out, _ = encode(part, weights, "half", buckets=buckets, reconstructions=0)
    index = frame_index(bench.location / "video-1.mp4")
    assert metas(out)["video-1.mp4"]["frame_times_us"] == [index.microseconds(4 + 2 * n) for n in range(9)]


def test_samples_of_another_codec_are_found(dataset: Path, tmp_path: Path) -> None:
    facts = json.loads((dataset / "dataset.json").read_text())
    assert not [p for p in check_dataset(Storage(str(dataset))) if "mixed" in p.what]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in dataset.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "dataset.json").unlink()
    facts["codec"]["digest"] = "0" * 64
    (copy / "dataset.json").write_text(json.dumps(facts))
    found = [p for p in check_dataset(Storage(str(copy))) if p.member == "meta"]
    assert len(found) == 3
    assert all("samples of other encoders are mixed in" in p.what for p in found)


def test_lengths_and_sizes_are_those_of_the_codec() -> None:
    wan = CODEC.canonical()
    for codec, buckets, words in (
        ({}, {"frames": [9, 13]}, r"codec dct takes 8k\+1 frames, not 13: use 9 or 17"),
        (wan, {"frames": [5, 15]}, r"codec wan_vae takes 4k\+1 frames, not 15: use 13 or 17"),
        (wan, {"frames": [2]}, "use 5"),
        ({}, {"sizes": [[480, 832]]}, r"multiples of 64, not \[480, 832\]: use 512 x 832"),
        (wan, {"sizes": [[100, 100]]}, "multiples of 16"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse(EncodeConfig, {"codec": codec, "buckets": buckets}, "encode")
    config = parse(EncodeConfig, {"codec": wan, "buckets": {"frames": [81], "sizes": [[480, 832]]}}, "encode")
    (bucket,) = video_buckets(config.buckets, 90, 24, 480, 832, config.codec.time_stride)
    assert (bucket, bucket.latent, bucket.name) == (Bucket(81, 480, 832, 4), (21, 60, 104), "81x480x832")


def test_round_trips_are_recorded_and_can_be_required(bench: support.Bench, weights: Path, dataset: Path) -> None:
    clips = json.loads((dataset / "reconstructions.json").read_text())["clips"]
    out, context = encode(bench, weights, "again")
    metrics = context.collected_metrics()
    assert support.tree_digest(out) == support.tree_digest(dataset)
    psnr = [clip["psnr_db"] for clip in clips]
    assert (metrics["psnr_clips"], metrics["psnr_db_lowest"]) == (2, min(psnr))
    assert metrics["psnr_db_mean"] == pytest.approx(sum(psnr) / 2, abs=0.01)
    with pytest.raises(DataIntegrityError, match=re.escape("40 dB are required")):
        encode(bench, weights, "poor", min_psnr_db=40)
    with pytest.raises(ConfigError, match="reconstructions, which are 0"):
        parse(EncodeConfig, {"min_psnr_db": 20, "reconstructions": 0}, "encode")
