"""Stage `import`: latents that others computed become a dataset version, once they are what is claimed of them.

The artifact has the layout of `encode`; `dataset.json` also says what was compared. Latents are kept as the mean:
what PyramidFlow saved is one draw from its posterior, and no variance is known.
"""

from __future__ import annotations

import torch
from safetensors.torch import save
from torch import Tensor

from dataprep.blocked import Blocked, read_block_list
from dataprep.buckets import Bucket
from dataprep.encode.clips import KeptClip
from dataprep.encode.dataset import (
    DATASET,
    NULL_TEXT,
    TIMES,
    EncodedClip,
    Identity,
    codec_facts,
    dataset_facts,
    encoder_facts,
    identity_facts,
    write_facts,
    write_samples,
)
from dataprep.encode.jobs import codec_of, text_encoder_of, text_member
from dataprep.encode.precomputed import rows_of
from dataprep.encode.saved_latents import STEP, Precomputed
from dataprep.encode.spot_check import Scale, check_error, frames_to_check, latent_error, text_error
from dataprep.encode_config import BucketConfig, EncodeConfig
from dataprep.engine import single_threaded
from dataprep.import_config import ImportConfig
from dataprep.media.location import MediaFile
from dataprep.quarantine import QUARANTINE, ItemError, QuarantineRow, Reason, check_rate, write_quarantine
from dataprep.sources.digests import DigestCache
from dataprep.sources.rows import MediaFiles, tree_digest
from m4v.codec.shape import SPATIAL, pixel_frames
from m4v.core.canonical import canonical_json, digest_bytes, digest_json
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.ids import clip_id
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.text.interface import TextFeatures


def run(context: StageContext) -> None:
    """Raises InputError when nothing usable is there, DataIntegrityError past the allowed share of bad rows and when
    latents or texts are not what the config claims."""
    config = context.config(ImportConfig)
    if (now := tree_digest(context.location(config.name), STEP)) != config.state:
        raise DataIntegrityError(
            "the collection is not what it was when the import was asked for", value=now[:16], where=config.name,
            next_step="m4v data import again",
        )  # fmt: skip
    with single_threaded(), DigestCache() as digests:
        _Import(context, config, digests).run()


def check_codec_digest(config: ImportConfig, digest: str) -> None:
    """Raises ConfigError when the digest that the user states is not that of the codec that was opened, and for
    folders of latents, of which nothing else says what made them, when none is stated."""
    if config.codec_digest == digest:
        return
    if config.codec_digest is not None:
        raise ConfigError(
            "latents are of another codec than the one that is opened", value=config.codec_digest, where=digest,
            next_step="name the codec and the weights that made them (codec.weights, --weights)",
        )  # fmt: skip
    if config.layout == "folders":
        raise ConfigError(
            "nothing says which codec made these latents", where=f"layout {config.layout}",
            next_step=f"where it is the one that is opened, say so: --set codec_digest={digest}",
        )  # fmt: skip


class _Import:
    def __init__(self, context: StageContext, config: ImportConfig, digests: DigestCache) -> None:
        self._context, self._config = context, config
        self._location = context.location(config.name)
        self._media = MediaFiles(self._location, digests, "sampled")
        weights = tuple((name, artifact.ref) for name, artifact in sorted(context.weights().items()))
        device = context.resources.device
        self._codec = codec_of(config.codec, weights, device)
        self._encoder = text_encoder_of(config.text_encoder, weights, device)
        check_codec_digest(config, self._codec.digest)
        self._identity = Identity(self._codec.digest, self._encoder.digest, config.fps)
        # Not among the items: they go with the run, so a takedown finds all there is in the dataset.
        self._latents, self._texts, self._times = (
            ItemStore(context.state.child(part)) for part in ("latents", "texts", TIMES)
        )
        blocked = read_block_list(context)
        self._blocked = None if blocked is None else Blocked(blocked)
        self._quarantine: list[QuarantineRow] = []
        self._scale = Scale(self._codec.constants)
        self._errors: dict[str, list[float]] = {"latents": [], "texts": []}

    def run(self) -> None:
        config, context = self._config, self._context
        found: dict[str, EncodedClip] = {}
        rows = 0
        for rows, row in enumerate(rows_of(config, self._location), start=1):
            context.progress.update(rows, None, "rows", f"{len(found)} latents")
            context.check_drain()
            if isinstance(row, QuarantineRow):
                self._quarantine.append(row)
                continue
            try:
                one = self._admit(row)
                if one.sample_id in found:
                    raise ItemError("duplicate_id", f"{row.place}: its span and size stand there already")
                found[one.sample_id] = one
            except ItemError as error:
                self._quarantine.append(
                    QuarantineRow(config.name, row.path, row.path, error.reason, error.detail, STEP)
                )
        check_rate(len(self._quarantine), rows, config.max_rejected, STEP, "max_rejected")
        if not found:
            raise InputError("no latent can be used", value=config.name, next_step="m4v data quarantine")
        self._scale.check(config.scale)
        self._write(list(found.values()), rows)

    def _admit(self, row: Precomputed) -> EncodedClip:
        """Check a row, bring its two items into the store. Raises ItemError for a row that cannot be used,
        DataIntegrityError for one that proves the config wrong."""
        config = self._config
        latent = row.latent()
        _, t, h, w = latent.shape
        frames = pixel_frames(t, self._codec.time_stride)
        rate = row.fps or config.fps
        start_us, end_us = round(row.start / rate * 1e6), round((row.start + frames) / rate * 1e6)
        size = (self._media.size(row.path) or 0) if row.names_media else 0
        digest = self._media.digest(row.path, size) if size else ""
        self._refuse_blocked(row, digest, start_us, end_us)
        texts = self._features(row)
        bucket = Bucket(frames, SPATIAL * h, SPATIAL * w, self._codec.time_stride)
        clip = KeptClip(
            clip_id=clip_id(config.name, row.path, start_us, end_us), source=config.name, source_id=row.path,
            path=row.path, source_digest=digest, size_bytes=size, media="video", start_us=start_us, end_us=end_us,
            first_frame=row.start, frames=frames, fps=rate, width=bucket.width, height=bucket.height, crop=None,
            captions=tuple(row.captions), caption_digest=digest_json(row.captions), phash="", licence=config.licence,
            scores=(),
        )  # fmt: skip
        if size and len(self._errors["latents"]) < config.check_clips:
            self._compare(row, clip, latent, texts)
        self._scale.add(latent)
        latent_key, text_key = self._keep_latent(latent), self._keep_text(clip, texts)
        times_key = self._keep_times(row, frames, rate)
        return EncodedClip(clip, bucket, rate, latent_key, text_key, self._identity.sample_id(clip, bucket), times_key)

    def _refuse_blocked(self, row: Precomputed, digest: str, start_us: int, end_us: int) -> None:
        if self._blocked is None:
            return
        name = self._config.name
        found = self._blocked.file(name, row.path, digest, "video") or self._blocked.span(
            name, row.path, digest, start_us, end_us
        )
        if found is not None:
            raise ItemError(Reason.TAKEDOWN, found.detail)

    def _features(self, row: Precomputed) -> TextFeatures | None:
        """Saved features of all captions, None where they are made anew."""
        if self._config.texts == "encode":
            return None
        texts = TextFeatures.cat([read() for read in row.texts])
        wanted = (self._config.text_encoder.slots, self._config.text_encoder.embedding_dim)
        if tuple(texts.embedding.shape[1:]) != wanted or texts.pooled.shape[1] != self._config.text_encoder.pooled_dim:
            raise ItemError(
                "bad_text", f"{row.place}: features {tuple(texts.embedding.shape[1:])}, the text encoder makes {wanted}"
            )
        return texts

    def _compare(self, row: Precomputed, clip: KeptClip, latent: Tensor, texts: TextFeatures | None) -> None:
        media = MediaFile(self._location.uri, row.path, clip.size_bytes, clip.source_digest, False,
                          str(self._context.scratch / "media"))  # fmt: skip
        frames = list(row.frames or range(row.start, row.start + frames_to_check(self._codec)))
        error = latent_error(self._codec, media.local(), frames, latent)
        check_error("a clip", row.place, error, self._config.max_error)
        self._errors["latents"].append(round(error, 4))
        if texts is not None:
            error = text_error(self._encoder, row.captions[0], texts[:1])
            check_error("a caption", row.place, error, self._config.max_error)
            self._errors["texts"].append(round(error, 4))

    def _keep_latent(self, latent: Tensor) -> str:
        member = bytes(save({"mean": latent.to(torch.bfloat16)}))
        key = digest_bytes(member)
        if self._latents.get(key) is None:
            self._latents.put(key, member)
        return key

    def _keep_text(self, clip: KeptClip, texts: TextFeatures | None) -> str:
        if texts is None:
            key = clip.text_key()
            if self._texts.get(key) is None:
                self._texts.put(key, text_member(self._encoder, clip.captions))
            return key
        member = bytes(save({"embedding": texts.embedding, "mask": texts.mask, "pooled": texts.pooled}))
        key = digest_bytes(member)
        if self._texts.get(key) is None:
            self._texts.put(key, member)
        return key

    def _keep_times(self, row: Precomputed, frames: int, rate: float) -> str:
        """Empty where the row does not say which frames were encoded; else they are counted at its rate."""
        if row.frames is None or len(row.frames) < frames:
            return ""
        member = canonical_json([round(frame / rate * 1e6) for frame in row.frames[:frames]])
        key = digest_bytes(member)
        if self._times.get(key) is None:
            self._times.put(key, member)
        return key

    def _item(self, part: str, key: str) -> bytes:
        found = {"latent": self._latents, "text": self._texts, "times": self._times}[part].get(key)
        assert found is not None  # put there a moment ago, by this very run
        return found

    def _write(self, encoded: list[EncodedClip], rows: int) -> None:
        config, context = self._config, self._context
        out = context.output("dataset")
        as_encoded = EncodeConfig(
            codec=config.codec, text_encoder=config.text_encoder, buckets=BucketConfig(fps=config.fps),
            shards=config.shards,
        )  # fmt: skip
        identity = identity_facts(as_encoded, codec_facts(config.codec, self._codec), self._identity)
        write_quarantine(out / QUARANTINE, self._quarantine)
        write_atomic(out / NULL_TEXT, text_member(self._encoder, ("",)))
        shards = write_samples(
            out, encoded, as_encoded, encoder_facts(identity), self._item,
            lambda done: context.progress.update(done, len(encoded), "samples written"),
        )  # fmt: skip
        facts = dataset_facts(encoded, identity, len(self._quarantine), len(shards))
        checked = {
            "layout": config.layout, "texts": config.texts, "rows": rows, "deviation": round(self._scale.deviation, 4),
            "compared": self._errors, "max_error": config.max_error,
        }  # fmt: skip
        write_facts(out / DATASET, {**facts, "imported": checked})
        told = {k: facts[k] for k in ("samples", "videos", "images", "captions", "tokens", "shards")}
        context.summary("dataset", {**told, "imported": config.layout, "compared": len(self._errors["latents"])})
