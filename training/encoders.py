"""What a dataset says of its encoders: held against the stage's order and against its own samples. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from m4v.codec.constants import PYRAMID_CONSTANTS, LatentConstants
from m4v.codec.shape import TEMPORAL
from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.ids import sample_id
from m4v.core.shard_index import INDEX
from training.config import OrderConfig

DATASET = "dataset.json"
_COLUMNS = ["sample_id", "clip_id", "shard", "bucket_t", "bucket_h", "bucket_w"]


def check_samples(dataset: Artifact, order: OrderConfig) -> None:
    """Raises ConfigError when the dataset's codec has another time stride than `order`, DataIntegrityError when a
    shard holds a sample of other encoders than `dataset.json` names: a sample's id follows from them, so one of each
    shard is looked at and no shard is opened."""
    facts = _facts(dataset)
    stride = facts.get("codec", {}).get("time_stride", TEMPORAL)
    if stride != order.time_stride:
        raise ConfigError(
            f"the dataset's codec has {stride} frames a latent, the stage counts {order.time_stride}",
            where=f"dataset {dataset.id[:12]}", next_step=f"set order.time_stride to {stride}",
        )  # fmt: skip
    if "encoder_digest" in facts:
        _check_ids(dataset, facts)


def codec_constants(dataset: Artifact) -> LatentConstants:
    """What is taken from the dataset's latents before the model sees them. Raises DataIntegrityError when it does not
    parse; PyramidFlow's for a dataset that does not say."""
    stated = _facts(dataset).get("codec", {}).get("normalisation")
    if stated is None:
        return PYRAMID_CONSTANTS
    try:
        return LatentConstants.from_json(stated)
    except (KeyError, TypeError, ValueError) as error:
        raise DataIntegrityError(
            f"codec.normalisation does not parse: {error}", value=stated, where=f"{DATASET} of {dataset.id[:12]}"
        ) from None


def _facts(dataset: Artifact) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(dataset.path(DATASET).read_bytes())
    return found


def _check_ids(dataset: Artifact, facts: Mapping[str, Any]) -> None:
    names = {tuple(b["latent"]): f"{b['frames']}x{b['height']}x{b['width']}" for b in facts["buckets"]}
    seen: set[str] = set()
    for batch in pq.ParquetFile(dataset.path(INDEX), pre_buffer=False).iter_batches(columns=_COLUMNS):
        shards = batch["shard"].to_pylist()
        for row, shard in enumerate(shards):
            if shard in seen:
                continue
            seen.add(shard)
            one = {name: batch[name][row].as_py() for name in _COLUMNS}
            bucket = names.get((one["bucket_t"], one["bucket_h"], one["bucket_w"]))
            if bucket is None or sample_id(one["clip_id"], facts["encoder_digest"], bucket) != one["sample_id"]:
                raise DataIntegrityError(
                    f"dataset mixes samples of other encoders than {facts['encoder_digest'][:12]}",
                    value=one["sample_id"], where=shard, next_step=f"m4v artifacts verify {dataset.id[:12]}",
                )  # fmt: skip
