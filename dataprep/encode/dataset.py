"""Writing a dataset version: shards, index, `dataset.json`, null text, reconstructions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dataprep.buckets import Bucket
from dataprep.encode.clips import KeptClip
from dataprep.encode_config import EncodeConfig
from dataprep.shards import SHARDS, Sample, ShardWriter, verify_shards
from m4v.core.canonical import canonical_json, digest_json
from m4v.core.ids import sample_id
from m4v.core.shard_index import INDEX, write_index
from m4v.core.storage import write_atomic

DATASET = "dataset.json"
NULL_TEXT = "null_text.safetensors"
RECONSTRUCTIONS = "reconstructions"
ALGORITHM = 1  # raise it when the same clip and config come to mean other samples


@dataclass(frozen=True)
class EncodedClip:
    """A clip whose two items are in the store. `fps` is 0 for an image."""

    clip: KeptClip
    bucket: Bucket
    fps: float
    latent_key: str
    text_key: str
    sample_id: str


@dataclass(frozen=True)
class Identity:
    """Digests that decide what the samples of a dataset mean."""

    codec: str
    text_encoder: str
    fps: float

    @property
    def encoder(self) -> str:
        return digest_json({**vars(self), "algorithm": ALGORITHM})

    def sample_id(self, clip: KeptClip, bucket: Bucket) -> str:
        return sample_id(clip.clip_id, self.encoder, bucket.name)


def meta_member(encoded: EncodedClip) -> bytes:
    """`KEY.json`: captions and where they come from, provenance, scores, licence and sizes of one sample."""
    clip, bucket = encoded.clip, encoded.bucket
    facts: dict[str, object] = {
        "sample_id": encoded.sample_id, "clip_id": clip.clip_id, "caption": clip.captions[0],
        "captions": list(clip.captions), "caption_digest": clip.caption_digest,
        "source": clip.source, "source_id": clip.source_id, "source_digest": clip.source_digest, "path": clip.path,
        "start_us": clip.start_us, "end_us": clip.end_us, "media": clip.media, "licence": clip.licence,
        "crop": None if clip.crop is None else list(clip.crop), "phash": clip.phash, "scores": dict(clip.scores),
        "fps": encoded.fps, "frames": bucket.frames, "height": bucket.height, "width": bucket.width,
    }  # fmt: skip
    if clip.caption_provenance is not None:
        facts["caption_provenance"] = list(clip.caption_provenance)
    return canonical_json(facts)


def _index_row(encoded: EncodedClip) -> dict[str, object]:
    clip, bucket = encoded.clip, encoded.bucket
    t, h, w = bucket.latent
    return {
        "sample_id": encoded.sample_id, "clip_id": clip.clip_id, "source": clip.source, "source_id": clip.source_id,
        "source_digest": clip.source_digest, "start_us": clip.start_us, "end_us": clip.end_us, "phash": clip.phash,
        "media": clip.media, "bucket_t": t, "bucket_h": h, "bucket_w": w, "tokens": bucket.tokens,
        "captions": len(clip.captions), "caption_digest": clip.caption_digest, "licence": clip.licence,
    }  # fmt: skip


def write_samples(
    directory: Path,
    encoded: Iterable[EncodedClip],
    config: EncodeConfig,
    item_of: Callable[[str, str], bytes],
    tick: Callable[[int], None],
) -> list[str]:
    """Write shards (grouped by bucket, sorted by sample id) and `index.parquet`, and read them back.

    `item_of` gives a part ("latent", "text") by its item key. Returns the names of the shards.
    """
    ordered = sorted(encoded, key=lambda e: (e.bucket, e.sample_id))
    rows: list[dict[str, object]] = []
    with ShardWriter(directory / SHARDS, samples=config.shards.samples, size_bytes=config.shards.size_bytes) as writer:
        for number, one in enumerate(ordered):
            members = {
                "latent": item_of("latent", one.latent_key),
                "text": item_of("text", one.text_key),
                "meta": meta_member(one),
            }
            placed = writer.add(Sample(one.sample_id, one.bucket.name, members))
            row = _index_row(one)
            for name, reference in placed.items():
                row |= {
                    "shard": reference.shard,
                    f"{name}_offset": reference.offset,
                    f"{name}_size": reference.size_bytes,
                    f"{name}_sha256": reference.sha256,
                }
            rows.append(row)
            tick(number + 1)
    write_index(directory / INDEX, rows)
    verify_shards(directory / SHARDS, rows)
    return writer.shards


def dataset_facts(
    encoded: list[EncodedClip], config: EncodeConfig, identity: Identity, quarantined: int, shards: int
) -> dict[str, object]:
    """Content of `dataset.json`. `normalisation`: (latent - shift) / scale is what training sees of the first latent
    frame and of the others; the shards hold latents as the codec made them."""
    from m4v.flow import latents

    counts = Counter((e.clip.media, e.bucket) for e in encoded)
    return {
        "schema_version": 1,
        "codec": {
            "config": config.codec.canonical(), "digest": identity.codec, "dtype": "bfloat16",
            "normalisation": {
                "first": {"shift": latents.FIRST_SHIFT, "scale": latents.FIRST_SCALE},
                "others": {"shift": latents.OTHER_SHIFT, "scale": latents.OTHER_SCALE},
            },
        },
        "text_encoder": {"config": config.text_encoder.canonical(), "digest": identity.text_encoder},
        "encoder_digest": identity.encoder,
        "fps": config.buckets.fps,
        "buckets": [
            {
                "media": media, "frames": bucket.frames, "height": bucket.height, "width": bucket.width,
                "latent": list(bucket.latent), "tokens": bucket.tokens, "samples": count,
            }
            for (media, bucket), count in sorted(counts.items())
        ],
        "samples": len(encoded),
        "videos": sum(e.clip.media == "video" for e in encoded),
        "images": sum(e.clip.media == "image" for e in encoded),
        "captions": sum(len(e.clip.captions) for e in encoded),
        "tokens": sum(e.bucket.tokens for e in encoded),
        "sources": dict(sorted(Counter(e.clip.source for e in encoded).items())),
        "shards": shards,
        "quarantined": quarantined,
    }  # fmt: skip


def write_facts(path: Path, facts: object) -> None:
    write_atomic(path, json.dumps(facts, indent=1, sort_keys=True).encode())
