"""The corpus of the learning check: drawn clips of moving shapes, every combination of words but the held-out ones.

Clips, captions and latents are made by the product's own drawing and codec and lie in the documented dataset layout.
Text features come from a file that was made where the text encoder's weights are (`write_features`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from dataprep.shards import Sample, ShardWriter
from dataprep.sources.drawing import Picture
from dataprep.sources.synthetic import Scene, captions_of, render
from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.core.artifacts import MANIFEST, ArtifactKind, build_manifest, verify, write_manifest
from m4v.core.canonical import digest_bytes
from m4v.core.ids import clip_id, sample_id
from m4v.core.rng import generator
from m4v.core.shard_index import INDEX, write_index
from m4v.core.storage import Storage
from m4v.text.config import MiniLmConfig
from m4v.text.interface import TextFeatures

COLOURS = ("red", "green", "blue", "yellow", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("right", "left", "up", "down")
BACKGROUNDS = ("white", "black")
HELD_OUT_PERIOD = 4  # one motion of the four of each colour and shape
CAPTIONS = 2  # wordings of a clip
FRAMES, SIDE, FPS = 57, 128, 24.0
TEXT = MiniLmConfig(slots=20)
MOST_PROCESSES = 8
SHARD_SAMPLES, SHARD_BYTES = 512, 1 << 30


class Words(NamedTuple):
    """What a prompt asks for."""

    colour: str
    shape: str
    motion: str
    background: str

    @property
    def captions(self) -> list[str]:
        return captions_of(Scene(self.shape, self.colour, self.background, self.motion, 0.24, 0.0, 0.0), CAPTIONS)

    @property
    def held_out(self) -> bool:
        """Whether no clip of this colour, shape and motion together is in the corpus, on any background. Every two of
        the three words are."""
        place = COLOURS.index(self.colour) + SHAPES.index(self.shape) + MOTIONS.index(self.motion)
        return place % HELD_OUT_PERIOD == 0


def all_words() -> list[Words]:
    return [Words(*words) for words in itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)]


def clip_of(words: Words, number: int, side: int = SIDE) -> Picture:
    """Clip `number` of a combination: its size and the place across its motion are its own."""
    draw = generator(0, "learning", *words, number)
    scene = Scene(
        words.shape, words.colour, words.background, words.motion, float(draw.uniform(0.2, 0.28)),
        float(draw.uniform(-1, 1)), 0.0,
    )  # fmt: skip
    return render(scene, FRAMES, side, side)


@cache
def codec():  # type: ignore[no-untyped-def]
    return open_codec(DctCodecConfig())


def latent_of(job: tuple[Words, int, int]) -> bytes:
    torch.set_num_threads(1)
    return bytes(save({"mean": torch.from_numpy(codec().encode(clip_of(*job))).to(torch.bfloat16)}))


def _standardised(rows: Tensor) -> Tensor:
    """Of (n, d); channels that hardly vary stay small."""
    spread = rows.float().std(0)
    return (rows.float() - rows.float().mean(0)) / (spread + 0.1 * spread.median())


class FeatureTable:
    """A `TextEncoder` that knows the sentences of a file and no others.

    Its features are the encoder's, each channel brought to mean 0 and deviation 1 over the file: sentences made of the
    same few words differ by a few per cent only, which minutes of training would not find.
    """

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self.path, self.digest = path, digest_bytes(path.read_bytes())
        self._places = {text: n for n, text in enumerate(json.loads(bytes(tensors["texts"].tolist())))}
        self._tokens, self._pooled = _standardised(tensors["tokens"]), _standardised(tensors["pooled"])
        self._ends = tensors["ends"]

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Raises KeyError for a sentence that is not in the file."""
        return TextFeatures.cat([self._one(self._places[text]) for text in texts])

    def _one(self, place: int) -> TextFeatures:
        begin, end = (int(self._ends[place - 1]) if place else 0), int(self._ends[place])
        embedding = torch.zeros(1, TEXT.slots, self._tokens.shape[1])
        embedding[0, : end - begin] = self._tokens[begin:end]
        mask = torch.arange(TEXT.slots)[None] < end - begin
        return TextFeatures(embedding, mask, self._pooled[place : place + 1])


def write_features(path: Path) -> int:
    """Features of every caption and of the empty text, half precision, without pads; returns the number of texts."""
    from m4v.text import open_text_encoder

    texts = ["", *dict.fromkeys(caption for words in all_words() for caption in words.captions)]
    found = open_text_encoder(TEXT).encode(texts)
    if bool(found.mask.all(dim=1).any()):
        raise SystemExit(f"a caption fills all {TEXT.slots} slots: it may have been cut")
    tensors: dict[str, Tensor] = {
        "tokens": found.embedding[found.mask].half(),
        "ends": found.mask.sum(1).cumsum(0),
        "pooled": found.pooled.half(),
        "texts": torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8),
    }
    save_file(tensors, path)
    return len(texts)


def _features(table: FeatureTable, texts: Sequence[str]) -> bytes:
    found = table.encode(texts)
    return bytes(save({"embedding": found.embedding.half(), "mask": found.mask, "pooled": found.pooled.half()}))


def corpus_at(directory: Path, table: FeatureTable, clips: int, side: int = SIDE) -> str:
    """Artifact id of the corpus in a folder, which is made there unless it is whole already."""
    if not (directory / MANIFEST).exists():
        shutil.rmtree(directory, ignore_errors=True)
        return write_corpus(directory, table, clips, side)
    return verify(Storage(str(directory)), deep=False).artifact_id


def write_corpus(directory: Path, table: FeatureTable, clips: int, side: int = SIDE, processes: int = 0) -> str:
    """A dataset of `clips` clips of every combination that is not held out; returns the artifact id."""
    directory.mkdir(parents=True)
    jobs = [(words, number, side) for words in all_words() if not words.held_out for number in range(clips)]
    text = {words: _features(table, words.captions) for words in {job[0] for job in jobs}}
    rows = []
    with ShardWriter(directory / "shards", samples=SHARD_SAMPLES, size_bytes=SHARD_BYTES) as writer:
        for job, latent in zip(jobs, _encoded(jobs, processes), strict=True):
            rows.append(_add(writer, job, latent, text[job[0]]))
    write_index(directory / INDEX, rows)
    facts = {"codec": {"config": DctCodecConfig().canonical()}, "text_encoder": {"config": TEXT.canonical()}}
    (directory / "dataset.json").write_text(json.dumps(facts))
    (directory / "null_text.safetensors").write_bytes(_features(table, [""]))
    manifest = build_manifest(directory, ArtifactKind.DATASET, {"samples": len(rows)})
    write_manifest(directory, manifest)
    return manifest.artifact_id


def _encoded(jobs: Sequence[tuple[Words, int, int]], processes: int) -> Iterator[bytes]:
    # Forked, as long as nothing has touched a GPU: a process that imports everything anew takes longer than its clips.
    count = processes or min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if count == 1 or torch.cuda.is_initialized():
        yield from map(latent_of, jobs)
        return
    with multiprocessing.get_context("fork").Pool(count) as pool:
        yield from pool.imap(latent_of, jobs, chunksize=8)


def _add(writer: ShardWriter, job: tuple[Words, int, int], latent: bytes, text: bytes) -> dict[str, object]:
    words, number, side = job
    t, h, w = 1 + (FRAMES - 1) // 8, side // 8, side // 8
    name = "-".join([*words, str(number)])
    owner = clip_id("shapes", name, 0, int(FRAMES / FPS * 1e6))
    key = sample_id(owner, "learning", f"{t}x{h}x{w}")
    meta = json.dumps({"captions": words.captions}).encode()
    placed = writer.add(Sample(key, f"{t}x{h}x{w}", {"latent": latent, "text": text, "meta": meta}))
    row: dict[str, object] = {
        "sample_id": key, "clip_id": owner, "source": "shapes", "source_id": name,
        "source_digest": hashlib.sha256(name.encode()).hexdigest(), "start_us": 0,
        "end_us": int(FRAMES / FPS * 1e6), "phash": "0" * 16, "media": "video", "bucket_t": t, "bucket_h": h,
        "bucket_w": w, "tokens": t * h * w // 4, "captions": CAPTIONS,
        "caption_digest": digest_bytes(words.captions[0].encode()), "licence": "CC0-1.0",
    }  # fmt: skip
    for member, reference in placed.items():
        row |= {
            "shard": reference.shard, f"{member}_offset": reference.offset, f"{member}_size": reference.size_bytes,
            f"{member}_sha256": reference.sha256,
        }  # fmt: skip
    return row


def drawn(words: Words, number: int, side: int = SIDE) -> np.ndarray:
    """A corpus clip as it comes back from the codec: what the best model could make."""
    return np.asarray(codec().decode(codec().encode(clip_of(words, number, side))))


def png_of(picture: np.ndarray) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, format="PNG")
    return sink.getvalue()
