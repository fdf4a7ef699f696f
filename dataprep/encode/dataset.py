"""Writing a dataset version: shards, index, `dataset.json`, null text, reconstructions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataprep.buckets import Bucket
from dataprep.encode.clips import KeptClip
from dataprep.encode_config import EncodeConfig
from dataprep.shards import SHARDS, Sample, ShardWriter, verify_shards
from dataprep.spool import RUN, SortedSpool, Spool, chunks
from m4v.core.canonical import canonical_json, digest_json
from m4v.core.ids import sample_id
from m4v.core.shard_index import INDEX, RUN_ROWS, SCHEMA, IndexWriter
from m4v.core.storage import write_atomic

if TYPE_CHECKING:
    from m4v.codec.config import CodecConfig
    from m4v.codec.interface import LatentCodec

DATASET = "dataset.json"
NULL_TEXT = "null_text.safetensors"
RECONSTRUCTIONS = "reconstructions"
TIMES = "frame-times"  # items: times of a clip's frames, by its latent's key
TIMES_DIGEST = digest_json({"frame_times": 1})
SCHEMA_VERSION = 2  # 1 had neither encoders nor frame times in each `KEY.json`
_ROWS_TOGETHER = 8192
ALGORITHM = 1  # raise it when the same clip and config come to mean other samples


@dataclass(frozen=True)
class EncodedClip:
    """A clip whose items are in the store. `fps` is 0 for an image; `times_key` is empty where nobody knows the times
    of its frames."""

    clip: KeptClip
    bucket: Bucket
    fps: float
    latent_key: str
    text_key: str
    sample_id: str
    times_key: str = ""


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


def encoder_facts(facts: Mapping[str, Any]) -> dict[str, object]:
    """What every sample's `KEY.json` repeats of `dataset.json`: which encoders made it, and what models take from its
    latents. Empty for a dataset of before that."""
    if facts.get("schema_version", 1) < SCHEMA_VERSION:
        return {}
    return {
        "codec": {name: facts["codec"][name] for name in ("digest", "time_stride", "normalisation")},
        "text_encoder": {"digest": facts["text_encoder"]["digest"]},
        "encoder_digest": facts["encoder_digest"],
    }


def meta_member(encoded: EncodedClip, encoders: Mapping[str, object], times: bytes | None) -> bytes:
    """`KEY.json`: captions and where they come from, provenance, scores, licence and sizes of one sample, what encoded
    it (`encoder_facts`), and the times of the frames that were encoded.

    `crop` (x0, y0, x1, y1) is a box of displayed pixels; what is left is scaled to cover height x width, and its
    centre is cut. `frame_times_us`: integer microseconds from the first presented frame of the file, one for each
    frame that went into the latent; None where they are not known.
    """
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
    if encoders:
        facts |= {**encoders, "frame_times_us": None if times is None else json.loads(times)}
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
    encoders: Mapping[str, object],
    item_of: Callable[[str, str], bytes],
    tick: Callable[[int], None],
) -> list[str]:
    """Write shards (grouped by bucket, sorted by sample id) and `index.parquet`, and read them back.

    `encoders` stand in every `KEY.json` (`encoder_facts`). `item_of` gives a part ("latent", "text", "times") by its
    item key. Returns the names of the shards.
    """
    ordered = SortedSpool[EncodedClip](lambda e: (e.bucket, e.sample_id), run=RUN)
    for one in encoded:
        ordered.append(one)
    rows = Spool[dict[str, object]]()
    with ShardWriter(directory / SHARDS, samples=config.shards.samples, size_bytes=config.shards.size_bytes) as writer:
        for number, one in enumerate(ordered):
            members = {
                "latent": item_of("latent", one.latent_key),
                "text": item_of("text", one.text_key),
                "meta": meta_member(one, encoders, item_of("times", one.times_key) if one.times_key else None),
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
    with IndexWriter(directory / INDEX) as index:
        tables = (pa.Table.from_pylist(some, schema=SCHEMA) for some in chunks(rows, _ROWS_TOGETHER))
        for some in chunks(tables, RUN_ROWS // _ROWS_TOGETHER):
            index.add_table(pa.concat_tables(some))
    verify_shards(directory / SHARDS, rows)
    return writer.shards


def codec_facts(config: CodecConfig, codec: LatentCodec) -> dict[str, object]:
    """Of `dataset.json`. `normalisation`: (latent - shift) / scale is what training sees of the first latent frame and
    of the others; the shards hold latents as the codec made them."""
    return {
        "config": config.canonical(), "digest": codec.digest, "dtype": "bfloat16", "time_stride": codec.time_stride,
        "normalisation": codec.constants.to_json(),
    }  # fmt: skip


def identity_facts(config: EncodeConfig, codec: Mapping[str, object], identity: Identity) -> dict[str, object]:
    """The part of `dataset.json` that is known before anything is encoded; `codec` as `codec_facts` says."""
    return {
        "schema_version": SCHEMA_VERSION,
        "codec": dict(codec),
        "text_encoder": {"config": config.text_encoder.canonical(), "digest": identity.text_encoder},
        "encoder_digest": identity.encoder,
        "fps": config.buckets.fps,
    }


def dataset_facts(
    encoded: Iterable[EncodedClip], identity: Mapping[str, object], quarantined: int, shards: int
) -> dict[str, object]:
    """Content of `dataset.json`; `identity` as `identity_facts` says."""
    counts: Counter[tuple[str, Bucket]] = Counter()
    sources: Counter[str] = Counter()
    captions = 0
    for one in encoded:
        counts[one.clip.media, one.bucket] += 1
        sources[one.clip.source] += 1
        captions += len(one.clip.captions)
    return {
        **identity,
        "buckets": [
            {
                "media": media, "frames": bucket.frames, "height": bucket.height, "width": bucket.width,
                "latent": list(bucket.latent), "tokens": bucket.tokens, "samples": count,
            }
            for (media, bucket), count in sorted(counts.items())
        ],
        "samples": counts.total(),
        "videos": sum(count for (media, _), count in counts.items() if media == "video"),
        "images": sum(count for (media, _), count in counts.items() if media == "image"),
        "captions": captions,
        "tokens": sum(bucket.tokens * count for (_, bucket), count in counts.items()),
        "sources": dict(sorted(sources.items())),
        "shards": shards,
        "quarantined": quarantined,
    }  # fmt: skip


def write_facts(path: Path, facts: object) -> None:
    write_atomic(path, json.dumps(facts, indent=1, sort_keys=True).encode())
