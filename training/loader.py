"""From dataset version to batches: indexed reading of shards, keyed randomness.

Whatever a sample meets (caption, text drop, posterior, timestep, noise, corruption) is keyed by (seed, stream,
sample id, draw index, purpose): batches, ranks and prefetch cannot change it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from m4v.codec.constants import PYRAMID_CONSTANTS, LatentConstants
from m4v.codec.shape import CHANNELS
from m4v.core.rng import generator, torch_seed
from m4v.core.shard_index import MEMBER_FIELDS, MEMBERS, MemberRef
from m4v.core.shard_reader import ShardReader
from m4v.flow.latents import normalise
from m4v.flow.packing import PackedColumn
from training.families.interface import Packing
from training.order import Draw, Pack
from training.samples import id_array
from training.shard_source import SHARDS, MemberReader
from training.streams import Stream
from training.tensor_file import read_tensors

INDEX_COLUMNS = ("shard", "captions", *(f"{name}_{field}" for name in MEMBERS for field, _ in MEMBER_FIELDS))


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
    captions: list[str]  # the drawn captions, before any drop; empty unless asked for
    dropped: list[bool]
    held_out: tuple[bool, ...] = ()  # draws of clips that never train: nothing of them was read; () for none

    def trained(self, column: int) -> list[int]:
        """Which samples of a column train."""
        held = self.held_out[column :: len(self.columns)]
        return [i for i in range(len(self.latents[column])) if not (held and held[i])]

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device; on a GPU the copies need not be over when this returns."""
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self, columns=[column.map(moved) for column in self.columns], latents=[moved(x) for x in self.latents],
            text=moved(self.text), text_mask=moved(self.text_mask), pooled=moved(self.pooled),
        )  # fmt: skip


class _Places(NamedTuple):
    """Where one kind of member lies in its shard, by row: columns, since rows of a table are slow to take apart."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    digests: pa.LargeStringArray


class SampleStore:
    """Members of a dataset version by sample id; bytes are checked against the index on every read.

    `index` needs `sample_id` and `INDEX_COLUMNS`; `path_of` gives the local file of a name in the dataset, unless a
    `reader` of its shards is given.
    """

    def __init__(self, path_of: Callable[[str], Path], index: pa.Table, reader: MemberReader | None = None) -> None:
        ids = id_array(index["sample_id"])
        self._rows = np.argsort(ids, kind="stable").astype(np.int32)
        self._ids = ids[self._rows]
        shards = index["shard"].combine_chunks().dictionary_encode()
        self._names: list[str] = shards.dictionary.to_pylist()
        self._shards = shards.indices.to_numpy()
        self._captions = index["captions"].to_numpy()
        self._places = {name: _places(index, name) for name in MEMBERS}
        self._reader = reader or ShardReader(lambda name: path_of(SHARDS + name))

    def _row(self, sample_id: str) -> int:
        key = sample_id.encode()
        place = int(np.searchsorted(self._ids, key))
        if place == len(self._ids) or self._ids[place] != key:
            raise KeyError(sample_id)
        return int(self._rows[place])

    def _bytes(self, sample_id: str, name: str) -> bytes:
        row, places = self._row(sample_id), self._places[name]
        shard = self._names[self._shards[row]]
        reference = MemberRef(shard, int(places.offsets[row]), int(places.sizes[row]), str(places.digests[row].as_py()))
        return self._reader.read(reference, f"{sample_id}.{name}")

    def latent(self, sample_id: str, draw: int, seed: int, frames: int) -> Tensor:
        """First `frames` latent frames (16, t, h, w), float32, un-normalised: the mean, or with a stored
        `logvar` a draw of the posterior."""
        tensors = read_tensors(self._bytes(sample_id, "latent"))
        mean: Tensor = tensors["mean"].float()
        if "logvar" in tensors:
            noise = torch.Generator().manual_seed(torch_seed(seed, sample_id, draw, "posterior"))
            deviation = torch.exp(0.5 * tensors["logvar"].float().clamp(-30, 20))
            mean = mean + deviation * torch.randn(mean.shape, generator=noise)
        return mean[:, :frames]

    def text(self, sample_id: str, caption: int) -> Text:
        tensors = read_tensors(self._bytes(sample_id, "text"))
        return Text(*(tensors[k][caption] for k in ("embedding", "mask", "pooled")))

    def captions(self, sample_id: str) -> int:
        """Number of captions of a sample."""
        return int(self._captions[self._row(sample_id)])

    def caption(self, sample_id: str, caption: int) -> str:
        return str(json.loads(self._bytes(sample_id, "meta"))["captions"][caption])


def _places(index: pa.Table, name: str) -> _Places:
    # Large strings: the digests of 34 million rows pass what 32-bit offsets reach.
    digests = index[f"{name}_sha256"].cast(pa.large_string()).combine_chunks()
    return _Places(index[f"{name}_offset"].to_numpy(), index[f"{name}_size"].to_numpy(), digests)


@dataclass(frozen=True)
class Collator:
    """Turns a pack of the plan into a batch.

    `null_text` replaces the features of a dropped caption. `high_window` narrows the noise ratio of high-stage
    columns to a range. `with_captions` also reads the captions' words. Samples in `held_out` keep their place in
    the order, so that its arithmetic holds, and are blank: zeros with a dropped caption, their bytes never read.
    """

    store: SampleStore
    packing: Packing  # the model's family
    null_text: Text
    seed: int
    stage: str
    text_drop: float
    high_window: tuple[float, float] | None = None
    with_captions: bool = False
    constants: LatentConstants = PYRAMID_CONSTANTS  # the codec's
    held_out: frozenset[str] = frozenset()

    def seed_of(self, stream: Stream) -> int:
        """Root of all randomness of a stream's draws."""
        return torch_seed(self.seed, "draw", self.stage, stream.name)

    def __call__(self, pack: Pack) -> Batch:
        seed, count = self.seed_of(pack.stream), len(pack.columns)
        latents, columns = [], []
        for c, column in enumerate(pack.columns):
            draws = pack.draws[c::count]
            clean = torch.stack([self._latent(draw, pack.stream, seed) for draw in draws])
            latents.append(normalise(clean, self.constants))
            columns.append(self.packing.pack(latents[-1], column, draws, seed, self.high_window))
        texts, captions, dropped = zip(*(self._text(draw, seed) for draw in pack.draws), strict=True)
        return Batch(
            pack=pack,
            columns=columns,
            latents=latents,
            text=torch.stack([t.embedding.float() for t in texts]),
            text_mask=torch.stack([t.mask.bool() for t in texts]),
            pooled=torch.stack([t.pooled.float() for t in texts]),
            captions=list(captions) if self.with_captions else [],
            dropped=list(dropped),
            held_out=self._held_out(pack),
        )

    def _held_out(self, pack: Pack) -> tuple[bool, ...]:
        held = tuple(sample in self.held_out for sample in pack.samples)
        return held if any(held) else ()

    def _latent(self, draw: Draw, stream: Stream, seed: int) -> Tensor:
        if draw.sample_id in self.held_out:
            return torch.zeros(CHANNELS, stream.t, stream.h, stream.w)
        return self.store.latent(*draw, seed, stream.t)

    def _text(self, draw: Draw, seed: int) -> tuple[Text, str, bool]:
        if draw.sample_id in self.held_out:
            return self.null_text, "", True
        choice = int(generator(seed, *draw, "caption").integers(self.store.captions(draw.sample_id)))
        dropped = bool(generator(seed, *draw, "text_drop").random() < self.text_drop)
        text = self.null_text if dropped else self.store.text(draw.sample_id, choice)
        caption = self.store.caption(draw.sample_id, choice) if self.with_captions else ""
        return text, caption, dropped
