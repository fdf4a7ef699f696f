"""From dataset version to batches: indexed reading of shards, keyed randomness, a prefetch thread.

Whatever a sample meets (caption, text drop, posterior, timestep, noise, corruption) is keyed by (seed, stream,
sample id, draw index, purpose): batches, ranks and prefetch cannot change it.
"""

from __future__ import annotations

import json
import mmap
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError
from m4v.core.rng import generator, torch_seed
from m4v.core.shard_index import iterate, member
from m4v.flow.latents import normalise
from m4v.flow.packing import ColumnDraws, PackedColumn, pack_column
from m4v.flow.schedule import PyramidSchedule
from training.order import Draw, Pack, Stream

ItemT = TypeVar("ItemT")


class Text(NamedTuple):
    """Features of one caption: embedding (L, d), mask (L,), pooled (p,)."""

    embedding: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Batch:
    """One pack, ready for the model. Row i * C + c of the text and of `draws` belongs to sample i of column c."""

    pack: Pack
    columns: list[PackedColumn]
    latents: list[Tensor]  # per column, normalised, clean (b, 16, t, h, w)
    text: Tensor
    text_mask: Tensor
    pooled: Tensor
    captions: list[str]  # the drawn caption, before any drop
    dropped: list[bool]


class SampleStore:
    """Members of a dataset version by sample id; bytes are checked against the index on every read."""

    def __init__(self, path_of: Callable[[str], Path], index: pa.Table) -> None:
        self._path_of = path_of
        self._rows = {str(row["sample_id"]): row for row in iterate(index)}
        self._maps: dict[str, mmap.mmap] = {}

    def _bytes(self, sample_id: str, name: str) -> bytes:
        reference = member(self._rows[sample_id], name)
        if reference.shard not in self._maps:
            with self._path_of(f"shards/{reference.shard}").open("rb") as stream:
                self._maps[reference.shard] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        data = self._maps[reference.shard][reference.offset : reference.offset + reference.size_bytes]
        if digest_bytes(data) != reference.sha256:
            raise DataIntegrityError(
                "shard member differs from the index",
                value=f"{sample_id}.{name}",
                where=reference.shard,
                next_step="m4v artifacts verify",
            )
        return data

    def latent(self, sample_id: str, draw: int, seed: int, frames: int) -> Tensor:
        """First `frames` latent frames (16, t, h, w), float32, un-normalised: the mean, or with a stored
        `logvar` a draw of the posterior."""
        tensors = load_tensors(self._bytes(sample_id, "latent"))
        mean: Tensor = tensors["mean"].float()
        if "logvar" in tensors:
            noise = torch.Generator().manual_seed(torch_seed(seed, sample_id, draw, "posterior"))
            deviation = torch.exp(0.5 * tensors["logvar"].float().clamp(-30, 20))
            mean = mean + deviation * torch.randn(mean.shape, generator=noise)
        return mean[:, :frames]

    def text(self, sample_id: str, caption: int) -> Text:
        tensors = load_tensors(self._bytes(sample_id, "text"))
        return Text(*(tensors[k][caption] for k in ("embedding", "mask", "pooled")))

    def captions(self, sample_id: str) -> list[str]:
        return [str(c) for c in json.loads(self._bytes(sample_id, "meta"))["captions"]]


class Collator:
    """Turns a pack of the plan into a batch. `empty_text` replaces the features of a dropped caption."""

    def __init__(
        self, store: SampleStore, schedule: PyramidSchedule, empty_text: Text, seed: int, stage: str, text_drop: float
    ) -> None:
        self._store, self._schedule, self._empty = store, schedule, empty_text
        self._seed, self._stage, self._text_drop = seed, stage, text_drop

    def seed_of(self, stream: Stream) -> int:
        """Root of all randomness of a stream's draws."""
        return torch_seed(self._seed, "draw", self._stage, stream.name)

    def __call__(self, pack: Pack) -> Batch:
        seed, count = self.seed_of(pack.stream), len(pack.columns)
        drawn = [self._text(draw, seed) for draw in pack.draws]
        latents, columns = [], []
        for c, (stage, unit) in enumerate(pack.columns):
            draws = pack.draws[c::count]
            clean = torch.stack([self._store.latent(*draw, seed, pack.stream.t) for draw in draws])
            latents.append(normalise(clean))
            _, channels, frames, height, width = clean.shape
            keyed = ColumnDraws.from_keys(seed, draws, (channels, frames, height, width), stage, unit)
            columns.append(pack_column(self._schedule, latents[-1], stage, unit, keyed))
        texts = [text for text, _, _ in drawn]
        return Batch(
            pack,
            columns,
            latents,
            torch.stack([t.embedding.float() for t in texts]),
            torch.stack([t.mask.bool() for t in texts]),
            torch.stack([t.pooled.float() for t in texts]),
            [caption for _, caption, _ in drawn],
            [dropped for _, _, dropped in drawn],
        )

    def _text(self, draw: Draw, seed: int) -> tuple[Text, str, bool]:
        captions = self._store.captions(draw.sample_id)
        choice = int(generator(seed, *draw, "caption").integers(len(captions)))
        dropped = bool(generator(seed, *draw, "text_drop").random() < self._text_drop)
        text = self._empty if dropped else self._store.text(draw.sample_id, choice)
        return text, captions[choice], dropped


class Prefetcher(Generic[ItemT]):
    """Makes items for steps start..stop-1 in a thread, in order; an error surfaces at its step."""

    def __init__(self, make: Callable[[int], ItemT], start: int, stop: int, depth: int = 2) -> None:
        self._queue: queue.Queue[ItemT | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._steps = range(start, stop)
        self._make = make
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, ItemT]]:
        for step in self._steps:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield step, item

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            self._drop_one()
            self._thread.join(timeout=0.01)

    def _drop_one(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return

    def _fill(self) -> None:
        for step in self._steps:
            try:
                item: ItemT | BaseException = self._make(step)
            except BaseException as error:  # handed to the consumer, whatever it is
                item = error
            if self._stop.is_set():
                return
            self._queue.put(item)
            if isinstance(item, BaseException):
                return


def batches_of(packs: Sequence[Pack], collate: Collator) -> list[Batch]:
    return [collate(pack) for pack in packs]
