"""The encode stage with imported weights of the causal VAE, a tiny one."""

import json
from pathlib import Path

import encode_support as support
import numpy as np
import pytest
import torch
from safetensors.torch import load

from dataprep.stages.encode import run
from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig
from m4v.core.artifacts import ArtifactKind, build_manifest, read_manifest, write_manifest
from m4v.core.errors import ConfigError
from m4v.core.shard_index import iterate, member, read_index, read_member
from m4v.core.stage import InputRef, Resources, StageContext
from m4v.core.storage import Storage
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae
from m4v.video_io import read_mp4

CODEC = CausalVaeConfig(weights="vae", logvar=True)
CONFIG: dict[str, object] = {
    "buckets": {"frames": [9, 17], "sizes": [[64, 128]]},
    "codec": CODEC.canonical(),
    "text_encoder": {"slots": 16},
    "reconstructions": 1,
}
TINY = VaeConfig(
    encoder_block_out_channels=(8, 8, 16, 16),
    decoder_block_out_channels=(8, 8, 16, 16),
    encoder_norm_num_groups=4,
    decoder_norm_num_groups=4,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> support.Bench:
    return support.make_bench(tmp_path_factory.mktemp("encode_vae"), videos=1, images=1)


@pytest.fixture(scope="module")
def weights(bench: support.Bench) -> Path:
    folder = bench.root / "weights"
    save_vae(folder, build_vae(TINY, seed=5))
    write_manifest(folder, build_manifest(folder, ArtifactKind.WEIGHTS, {}))
    return folder


def _context(bench: support.Bench, name: str, *weights: InputRef) -> StageContext:
    work = bench.root / name
    request = bench.request(work, CONFIG, bench.root / f"{name}-items", Resources())
    return StageContext(request.model_copy(update={"inputs": (*request.inputs, *weights)}))


def test_shards_hold_the_posterior_and_the_reconstruction_is_decoded(bench: support.Bench, weights: Path):
    reference = InputRef(
        name="weights.vae", kind=ArtifactKind.WEIGHTS, uri=str(weights),
        artifact_id=read_manifest(Storage(str(weights))).artifact_id,
    )  # fmt: skip
    context = _context(bench, "imported", reference)
    run(context)
    context.progress.close()
    dataset = bench.root / "imported" / "staging" / "dataset"
    codec = open_codec(CODEC, {"vae": weights})
    rows = {str(r["source_id"]): r for r in iterate(read_index(dataset / "index.parquet"))}
    stored = load(read_member(dataset / "shards", member(rows["video-0.mp4"], "latent")))
    assert {name: tuple(t.shape) for name, t in stored.items()} == {"mean": (16, 3, 8, 16), "logvar": (16, 3, 8, 16)}
    frames, _ = read_mp4(bench.location / "video-0.mp4")
    moments = codec.encode_moments(np.ascontiguousarray(frames[:17, 8:72]))
    assert moments.logvar is not None
    for name, expected in (("mean", moments.mean), ("logvar", moments.logvar)):
        # Another reader may convert colours with other roundings.
        difference = np.abs(stored[name].float().numpy() - expected)
        assert stored[name].dtype == torch.bfloat16
        assert difference.mean() < 0.05 * expected.std()
    stated = json.loads((dataset / "dataset.json").read_text())["codec"]
    assert (stated["config"], stated["digest"]) == (CODEC.canonical(), codec.digest)
    assert len(list((dataset / "reconstructions").glob("*.mp4"))) == 1


def test_weights_that_are_no_input(bench: support.Bench):
    context = _context(bench, "without")
    with pytest.raises(ConfigError, match=r"'vae'.*m4v weights import"):
        run(context)
    context.progress.close()
