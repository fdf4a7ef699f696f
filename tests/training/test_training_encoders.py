"""A stage takes latents of the codec that its dataset names, counted and normalised as that codec says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import clips, latent_of, write_dataset

from m4v.codec.constants import PYRAMID_CONSTANTS, Affine, LatentConstants
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.ids import sample_id
from m4v.core.shard_index import INDEX, read_index, write_index
from m4v.flow.latents import normalise
from training.config import OrderConfig, latents_of
from training.encoders import check_samples, codec_constants
from training.families.pyramid import PyramidFamily
from training.loader import Collator, SampleStore, Text
from training.order import DataOrder
from training.samples import Samples

WAN = LatentConstants(*[Affine(tuple(c / 10 for c in range(16)), tuple(1 + c / 8 for c in range(16)))] * 2)


def dataset(folder: Path, encoder: str = "tests", **codec: object) -> Artifact:
    """Samples of two shards whose ids are of the encoder digest `tests`; `dataset.json` says `encoder`."""
    identity = write_dataset(folder, clips(4, 0), per_shard=2)
    facts = json.loads((folder / "dataset.json").read_text())
    facts["codec"] |= codec
    buckets = [{"frames": 3, "height": 8, "width": 8, "latent": [3, 8, 8]}]  # the helper names buckets by latents
    (folder / "dataset.json").write_text(json.dumps({**facts, "encoder_digest": encoder, "buckets": buckets}))
    return Artifact(str(folder), identity, ArtifactKind.DATASET, folder / "cache")


def test_samples_of_other_encoders_are_refused_before_any_is_read(tmp_path: Path) -> None:
    check_samples(dataset(tmp_path / "one"), OrderConfig())
    mixed = dataset(tmp_path / "two")
    rows = read_index(tmp_path / "two" / INDEX).to_pylist()
    for row in rows:
        if row["shard"] == "000001.tar":
            row["sample_id"] = sample_id(row["clip_id"], "another codec", "3x8x8")
    write_index(tmp_path / "two" / INDEX, rows)
    with pytest.raises(
        DataIntegrityError, match=r"mixes samples of other encoders than tests.*000001\.tar.*artifacts v"
    ):
        check_samples(mixed, OrderConfig())
    with pytest.raises(DataIntegrityError, match="mixes samples"):
        check_samples(dataset(tmp_path / "three", encoder="e" * 64), OrderConfig())


def test_a_stage_counts_latents_as_its_codec_does(tmp_path: Path) -> None:
    wan = dataset(tmp_path / "d", time_stride=4)
    with pytest.raises(ConfigError, match=r"4 frames a latent, the stage counts 8.*order\.time_stride to 4"):
        check_samples(wan, OrderConfig())
    order = OrderConfig(frames=81, min_frames=13, time_stride=4)
    check_samples(wan, order)
    assert (order.latents, order.min_latents, latents_of(81, 4)) == (21, 4, 21)
    with pytest.raises(ValueError, match=r"min_frames is 14; the causal codec needs 4n\+1: use 1, 13 or 17"):
        OrderConfig(frames=81, min_frames=14, time_stride=4)
    with pytest.raises(ValueError, match=r"frames is 60; the causal codec needs 8n\+1: use 1, 57 or 65"):
        OrderConfig(frames=60)


def test_orders_of_before_keep_their_canonical_form() -> None:
    assert "time_stride" not in OrderConfig().canonical()
    assert OrderConfig(frames=13, min_frames=5, time_stride=4).canonical()["time_stride"] == 4


def test_longer_latents_train_as_prefixes_normalised_as_the_dataset_says(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write_dataset(folder, clips(3, 0, t=6))
    index = read_index(folder / INDEX)
    config = OrderConfig(frames=13, min_frames=5, time_stride=4, image_every=0, packs=1)
    (pack,) = DataOrder(Samples.of_index(index), config, 5, "13f").packs(0)
    assert pack.stream.t == 4
    null = load_file(folder / "null_text.safetensors")
    batch = Collator(
        store=SampleStore(folder.joinpath, index),
        packing=PyramidFamily(CheckpointConfig(model=ModelConfig(), schedule=ScheduleConfig())),
        null_text=Text(*(null[key][0] for key in Text._fields)), seed=5, stage="13f", text_drop=0.0, constants=WAN,
    )(pack)  # fmt: skip
    number = dict(zip(index["sample_id"].to_pylist(), index["source_id"].to_pylist(), strict=True))
    stored = latent_of(clips(3, 0, t=6)[int(number[pack.draws[0].sample_id])]).float()[None, :, :4]
    assert torch.equal(batch.latents[0][0], normalise(stored, WAN)[0])
    assert not torch.allclose(batch.latents[0][0], normalise(stored)[0])


def test_constants_are_those_of_the_dataset(tmp_path: Path) -> None:
    assert codec_constants(dataset(tmp_path / "old")) == PYRAMID_CONSTANTS
    assert codec_constants(dataset(tmp_path / "new", normalisation=WAN.to_json())) == WAN
    with pytest.raises(DataIntegrityError, match=r"codec\.normalisation does not parse"):
        codec_constants(dataset(tmp_path / "bad", normalisation={"first": 1}))
