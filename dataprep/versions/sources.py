"""Where whole members may survive: other datasets with the same samples, and encode's item store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from dataprep.buckets import Bucket
from dataprep.curation.table import CLIPS
from dataprep.encode.clips import KeptClip, kept_clips
from dataprep.encode.dataset import EncodedClip, encoder_facts, meta_member
from dataprep.encode.jobs import latent_shape_of
from dataprep.encode_config import EncodeConfig
from dataprep.quarantine import ItemError
from dataprep.versions.repair import read_range
from m4v.core.artifacts import Artifact
from m4v.core.errors import M4VError
from m4v.core.items import ItemStore
from m4v.core.shard_index import INDEX, iterate, read_index
from m4v.core.storage import Storage

_log = logging.getLogger(__name__)


class OtherDataset:
    """Samples of another dataset version, found by their ids."""

    def __init__(self, artifact: Artifact) -> None:
        self.name = f"dataset {artifact.id[:12]}"
        self._artifact = artifact
        self._rows: dict[str, dict[str, object]] | None = None

    def get(self, row: Mapping[str, object], member_kind: str) -> bytes | None:
        if self._rows is None:
            self._rows = self._read()
        found = self._rows.get(str(row["sample_id"]))
        return None if found is None else read_range(self._artifact.storage, found, member_kind)

    def _read(self) -> dict[str, dict[str, object]]:
        try:
            return {str(row["sample_id"]): row for row in iterate(read_index(self._artifact.path(INDEX)))}
        except (M4VError, OSError) as error:
            _log.info("%s cannot help: %s", self.name, error)
            return {}


class EncodedItems:
    """Items that an encode run left, found through the clip table it read; no model is opened.

    `latents`, `texts` and `times` are the item folders of the run's codec, text encoder and frame times; `facts` is
    the content of `dataset.json`.
    """

    name = "encode's items"

    def __init__(
        self, clips: Artifact, config: EncodeConfig, latents: Storage, texts: Storage, times: Storage,
        facts: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._clips, self._config, self._encoders = clips, config, encoder_facts(facts)
        self._latents, self._texts, self._times = ItemStore(latents), ItemStore(texts), ItemStore(times)
        self._by_id: dict[str, KeptClip] | None = None

    def get(self, row: Mapping[str, object], member_kind: str) -> bytes | None:
        if self._by_id is None:
            self._by_id = {clip.clip_id: clip for clip in self._read()}
        clip = self._by_id.get(str(row["clip_id"]))
        if clip is None:
            return None
        try:
            buckets = clip.buckets(self._config.buckets, self._config.codec.time_stride)
        except ItemError:
            return None  # of a run with other buckets
        fps = clip.sampling_fps(self._config.buckets)
        latent_key = clip.latent_key(buckets, fps)
        if member_kind == "text":
            return self._texts.get(clip.text_key())
        latent = self._latents.get(latent_key)
        if latent is None or member_kind == "latent":
            return latent
        return self._meta(row, clip, buckets, fps, latent, self._times.get(latent_key))

    def _meta(
        self, row: Mapping[str, object], clip: KeptClip, buckets: list[Bucket], fps: float, latent: bytes,
        times: bytes | None,
    ) -> bytes | None:  # fmt: skip
        """`meta` also needs to know which bucket the clip filled, which its latent tells."""
        shape = latent_shape_of(latent)
        bucket = next((b for b in buckets if b.latent == shape), None)
        if bucket is None:
            return None
        return meta_member(EncodedClip(clip, bucket, fps, "", "", str(row["sample_id"])), self._encoders, times)

    def _read(self) -> Iterator[KeptClip]:
        try:
            yield from kept_clips(self._clips.path(CLIPS))
        except (M4VError, OSError) as error:
            _log.info("clip table %s cannot help: %s", self._clips.id[:12], error)
