"""A dataset version as PyramidFlow's trainer reads it: JSON lines, and a file of `torch.save` a latent and a text.

Layout: `video_text.jsonl`, `image_text.jsonl`, `latent/AA/KEY.pt`, `text/AA/KEY-N.pt`, `SHA256SUMS`, `export.json`. A
place whose `export.json` is not `complete` was interrupted: the same export goes on there. It is a folder or a prefix
of an object store.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dataprep.encode.dataset import DATASET
from dataprep.shards import SHARDS
from dataprep.sources.archives import split_path
from m4v.core.artifacts import Artifact
from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.rng import generator
from m4v.core.shard_index import INDEX, MEMBERS, iterate, member, read_index, read_member
from m4v.core.storage import Storage, replacing, storage_faults

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "pyramidflow"
FACTS, SUMS = "export.json", "SHA256SUMS"
LINES = {"video": "video_text.jsonl", "image": "image_text.jsonl"}
TAKEN_SIZES = frozenset({(48, 80), (96, 160)})  # latent (height, width) that its loader asserts
_LOGVAR = (-30.0, 20.0)


@dataclass(frozen=True)
class ExportOptions:
    """`prefix` stands before the names of latents and texts, `media` (source -> folder) before those of media: its
    loader opens names as they are. `every_caption`: a line each, not the first alone. `seed` of posterior draws.
    `any_encoder`: also latents and texts that no PyramidFlow model understands."""

    prefix: str = ""
    media: Mapping[str, str] = field(default_factory=dict)
    every_caption: bool = False
    seed: int = 0
    any_encoder: bool = False


@dataclass
class Exported:
    """Figures of an export; `lines` by medium, `left_out` lines by reason."""

    lines: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    written: int = 0
    size_bytes: int = 0
    other_sizes: int = 0  # videos of sizes that its loader refuses

    def figures(self) -> dict[str, Any]:
        return {**vars(self), "lines": dict(self.lines), "left_out": dict(sorted(self.left_out.items()))}


def export_dataset(
    artifact: Artifact,
    out: Storage,
    options: ExportOptions,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write a dataset into `out`. Latents are drawn from the posterior where the shards keep its
    variance, else they are its mean. Same dataset, same options, same bytes.

    Raises InputError for a dataset of other encoders and for a place that holds something else, DataIntegrityError
    for damaged shards, InfrastructureError when the disk or the store fails.
    """
    facts = json.loads(artifact.path(DATASET).read_bytes())
    if not options.any_encoder:
        _check_encoders(facts, artifact.id)
    identity = {
        "format": FORMAT, "dataset": artifact.id, "codec": facts["codec"], "text_encoder": facts["text_encoder"],
        "fps": facts["fps"], "options": {**vars(options), "media": dict(options.media)},
    }  # fmt: skip
    with storage_faults(out.uri):
        _begin(out, identity)
        done = _Export(artifact, out, options).run(tick)
        counted = {k: v for k, v in done.figures().items() if k != "written"}
        _write_facts(out, {**identity, **counted, "complete": True})
    return done


def _check_encoders(facts: Mapping[str, Any], identity: str) -> None:
    for part, kind in (("codec", "causal_vae"), ("text_encoder", "t5_clip")):
        found = facts[part]["config"].get("kind")
        if found != kind:
            raise InputError(
                f"PyramidFlow's models do not understand what this {part.replace('_', ' ')} made", value=found,
                where=f"dataset {identity[:12]}",
                next_step=f"encode with a {part} of kind {kind}; --any-encoder writes it all the same",
            )  # fmt: skip


def _begin(out: Storage, identity: Mapping[str, object]) -> None:
    if out.exists(FACTS):
        try:
            there = json.loads(out.read_bytes(FACTS))
        except ValueError:
            there = {}
        if not isinstance(there, dict) or any(there.get(k) != v for k, v in identity.items()):
            raise InputError("folder holds another export", value=out.uri, next_step="export into an empty folder")
    elif out.files(limit=1) or out.directories():
        raise InputError("folder is not empty", value=out.uri, next_step="export into an empty folder")
    _write_facts(out, {**identity, "complete": False})


def _write_facts(out: Storage, facts: Mapping[str, object]) -> None:
    out.write_bytes(FACTS, json.dumps(facts, indent=1, sort_keys=True).encode())


@contextlib.contextmanager
def _text_file(out: Storage, name: str) -> Iterator[TextIO]:
    """A file that gets its name when it is whole; nothing of it is left when writing fails."""
    with contextlib.ExitStack() as stack:
        if out.is_local:
            path = stack.enter_context(replacing(out.local_root / name))
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        if not out.is_local:
            out.put_file(path, name)


class _Export:
    def __init__(self, artifact: Artifact, out: Storage, options: ExportOptions) -> None:
        self._artifact, self._out, self._options = artifact, out, options
        # An object appears whole or not at all, and `export.json` says of which export: its size tells that it is done.
        self._remote = {} if out.is_local else {file.path: file.size_bytes for file in out.list()}
        self.done = Exported()

    def run(self, tick: Callable[[int, int], None]) -> Exported:
        rows = read_index(self._artifact.path(INDEX))
        with (
            _text_file(self._out, LINES["video"]) as videos, _text_file(self._out, LINES["image"]) as images,
            _text_file(self._out, SUMS) as digests,
        ):  # fmt: skip
            for number, row in enumerate(iterate(rows), start=1):
                is_video = row["media"] == "video"
                for line in self._video(row, digests) if is_video else self._image(row):
                    (videos if is_video else images).write(json.dumps(line, ensure_ascii=False) + "\n")
                    self.done.lines[str(row["media"])] += 1
                self.done.samples += 1
                tick(number, rows.num_rows)
        return self.done

    def _members(self, row: dict[str, object]) -> dict[str, bytes]:
        folder = self._artifact.path(f"{SHARDS}/{row['shard']}").parent
        return {name: read_member(folder, member(row, name)) for name in MEMBERS}

    def _video(self, row: dict[str, object], sums: TextIO) -> Iterator[dict[str, object]]:
        from safetensors.torch import load

        members, key = self._members(row), str(row["sample_id"])
        meta, text = json.loads(members["meta"]), load(members["text"])
        size = (int(str(row["bucket_h"])), int(str(row["bucket_w"])))
        self.done.other_sizes += size not in TAKEN_SIZES
        latent = f"latent/{key[:2]}/{key}.pt"
        self._put(latent, _saved(drawn_latent(load(members["latent"]), key, self._options.seed)), sums)
        for number, caption in enumerate(self._captions(meta)):
            features = f"text/{key[:2]}/{key}-{number}.pt"
            self._put(features, _saved(text_features(text, number)), sums)
            yield {
                "video": self._media(meta), "text": caption, "latent": self._options.prefix + latent,
                "text_fea": self._options.prefix + features, "sample_id": key, "clip_id": row["clip_id"],
            }  # fmt: skip

    def _image(self, row: dict[str, object]) -> Iterator[dict[str, object]]:
        """Its trainer reads images from their files."""
        meta = json.loads(self._members(row)["meta"])
        if split_path(meta["path"]) is not None:
            self.done.left_out["image_inside_archive"] += 1
            return
        for caption in self._captions(meta):
            yield {
                "image": self._media(meta), "text": caption, "sample_id": row["sample_id"], "clip_id": row["clip_id"],
            }  # fmt: skip

    def _captions(self, meta: Mapping[str, Any]) -> list[str]:
        return list(meta["captions"] if self._options.every_caption else meta["captions"][:1])

    def _media(self, meta: Mapping[str, Any]) -> str:
        folder = self._options.media.get(meta["source"], "")
        return f"{folder.rstrip('/')}/{meta['path']}" if folder else str(meta["path"])

    def _put(self, name: str, data: bytes, sums: TextIO) -> None:
        if not self._is_there(name, data):
            self._out.write_bytes(name, data)
            self.done.written += 1
        self.done.size_bytes += len(data)
        sums.write(f"{digest_bytes(data)}  {name}\n")

    def _is_there(self, name: str, data: bytes) -> bool:
        if not self._out.is_local:
            return self._remote.get(name) == len(data)
        path = self._out.local_root / name
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def drawn_latent(stored: Mapping[str, Tensor], key: str, seed: int) -> Tensor:
    """bf16 (1, 16, t, h, w), un-normalised: a draw from the posterior of a latent member, its mean without one.

    Raises DataIntegrityError when a number is not finite.
    """
    import torch

    mean = stored["mean"].to(torch.float32)
    if "logvar" in stored:
        noise = generator(seed, key, "export-posterior").standard_normal(tuple(mean.shape), dtype=np.float32)
        mean = mean + torch.exp(0.5 * stored["logvar"].to(torch.float32).clamp(*_LOGVAR)) * torch.from_numpy(noise)
    if not bool(torch.isfinite(mean).all()):
        raise DataIntegrityError("latent holds numbers that are not finite", value=key)
    return mean.to(torch.bfloat16)[None]


def text_features(stored: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Features of caption `number` of a text member under PyramidFlow's names, a leading axis of one."""
    import torch

    one = slice(number, number + 1)
    return {
        "prompt_embed": stored["embedding"][one].clone(),
        "prompt_attention_mask": stored["mask"][one].to(torch.int64),
        "pooled_prompt_embed": stored["pooled"][one].clone(),
    }


def _saved(value: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
