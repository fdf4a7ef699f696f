"""The training loader against plain webdataset: the same shards, the same workers, the same tensors, in one run.

    python tests/benchmarks/bench_loader.py [--workers 1 2] [--repeats 5] [--megabytes 256] [--only 384p-image]

Shards as the product writes them (bfloat16 latents, float32 text features, JSON), in the page cache. Both sides give
float32 latents and the features of one caption: `tensors` sample by sample in this process, `batches` stacked, made by
`workers` in the background (ours threads, webdataset's processes). Ours follows the global shuffled order that any step
can resume, every byte held against its sha256; webdataset reads the shards in sequence, unchecked, and cannot resume.
`resumed` is our batches begun in the middle: the run fails unless they are the bytes of the straight run's. Sides take
turns; figures are medians of samples per second, and of the ratio of each turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import webdataset
from safetensors.torch import load, save
from torch import Tensor

from dataprep.shards import Sample, ShardWriter
from m4v.core.shard_index import MEMBER_SUFFIX, SCHEMA
from training.config import OrderConfig
from training.loader import SampleStore
from training.order import DataOrder
from training.prefetch import Prefetcher
from training.samples import SampleRow

import pyarrow as pa  # isort: skip


class Size(NamedTuple):
    """Latent (t, h, w), text slots and width, and samples of a batch."""

    t: int
    h: int
    w: int
    slots: int
    width: int
    batch: int


SIZES = {
    "64p-clip": Size(2, 8, 8, 32, 384, 16),
    "384p-image": Size(1, 48, 80, 128, 1024, 8),
    "384p-57f": Size(8, 48, 80, 128, 2048, 4),
    "768p-57f": Size(8, 96, 160, 128, 4096, 2),
}


@dataclass(frozen=True)
class Made:
    """Shards on disk with their index."""

    root: Path
    index: pa.Table
    size: Size
    count: int

    @property
    def urls(self) -> list[str]:
        return [str(path) for path in sorted((self.root / "shards").glob("*.tar"))]


def make(root: Path, size: Size, count: int) -> Made:
    """Write random samples."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(root / "shards", samples=max(8, count // 8), size_bytes=1 << 30) as writer:
        for number in range(count):
            mean = torch.randn(16, *size[:3], generator=generator).bfloat16()
            text = {
                "embedding": torch.randn(2, size.slots, size.width, generator=generator).bfloat16(),
                "mask": torch.ones(2, size.slots, dtype=torch.bool),
                "pooled": torch.randn(2, 768, generator=generator),
            }
            meta = json.dumps({"captions": [f"caption {number}", "another"]}).encode()
            content = {"latent": save({"mean": mean}), "text": save(text), "meta": meta}
            key = hashlib.sha256(f"{number}".encode()).hexdigest()[:32]
            row: dict[str, object] = {
                "sample_id": key, "clip_id": key, "source": "bench", "media": "image" if size.t == 1 else "video",
                "bucket_t": size.t, "bucket_h": size.h, "bucket_w": size.w, "captions": 2,
            }  # fmt: skip
            for name, reference in writer.add(Sample(key, "bucket", content)).items():
                row |= {
                    "shard": reference.shard, f"{name}_offset": reference.offset,
                    f"{name}_size": reference.size_bytes, f"{name}_sha256": reference.sha256,
                }  # fmt: skip
            rows.append(row)
    return Made(root, pa.Table.from_pylist(rows, schema=SCHEMA), size, count)


class Ours:
    """The order's samples through the store, as the collator reads them."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.store = SampleStore(lambda name: made.root / name, made.index)
        size = made.size
        config = OrderConfig(
            frames=8 * (size.t - 1) + 1, min_frames=1, packs=1, image_every=0, columns=(0,), tokens_per_pack=1
        )
        rows = [SampleRow(*row.values()) for row in made.index.select(list(COLUMNS)).to_pylist()]
        self.order = DataOrder(rows, config, 0, "bench")
        (self.stream,) = self.order.streams

    def sample(self, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sample = self.order.sample_at(self.stream, draw)
        text = self.store.text(sample, 0)
        return self.store.latent(sample, draw, 0, self.made.size.t), text.embedding.float(), text.mask, text.pooled

    def tensors(self) -> Iterator[int]:
        for draw in range(self.made.count):
            self.sample(draw)
            yield 1

    def batch(self, step: int) -> list[Tensor]:
        size = self.made.size.batch
        samples = [self.sample(draw) for draw in range(step * size, (step + 1) * size)]
        return [torch.stack(parts) for parts in zip(*samples, strict=True)]

    def batches(self, workers: int, first: int = 0) -> Iterator[list[Tensor]]:
        steps = self.made.count // self.made.size.batch
        prefetch = Prefetcher(self.batch, first, steps, depth=2 * workers, workers=workers)
        try:
            for _, batch in prefetch:
                yield batch
        finally:
            prefetch.close()


COLUMNS = ("sample_id", "source", "media", "bucket_t", "bucket_h", "bucket_w")


def decoded(sample: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors of a webdataset sample."""
    text = load(sample[MEMBER_SUFFIX["text"]])
    mean: Tensor = load(sample[MEMBER_SUFFIX["latent"]])["mean"].float()
    return mean, text["embedding"][0].float(), text["mask"][0], text["pooled"][0]


def stacked(samples: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*samples, strict=True)]


def theirs_tensors(made: Made) -> Iterator[int]:
    for _ in webdataset.WebDataset(made.urls, shardshuffle=False).map(decoded):
        yield 1


class TheirBatches:
    """A loader with its worker processes running, as a training would keep it."""

    def __init__(self, made: Made, workers: int) -> None:
        dataset = webdataset.WebDataset(made.urls, shardshuffle=False, nodesplitter=None).map(decoded)
        dataset = dataset.batched(made.size.batch, collation_fn=stacked, partial=False)
        self._loader = webdataset.WebLoader(
            dataset, batch_size=None, num_workers=workers, prefetch_factor=2, persistent_workers=True
        )

    def __call__(self) -> Iterator[list[Tensor]]:
        yield from self._loader


def rate(run: Callable[[], Iterator[object]], samples: int) -> float:
    """Samples per second of wall-clock time; `samples` of each item."""
    began, items = time.perf_counter(), 0
    for _ in run():
        items += 1
    return items * samples / (time.perf_counter() - began)


def check_resume(ours: Ours, workers: int) -> None:
    """Batches begun in the middle, by other workers, are those of the straight run."""
    straight = list(ours.batches(workers))
    middle = len(straight) // 2
    resumed = list(ours.batches(workers + 1, middle))
    if not all(
        torch.equal(a, b) for x, y in zip(straight[middle:], resumed, strict=True) for a, b in zip(x, y, strict=True)
    ):
        raise AssertionError("a resumed loader gave other batches")


def compare(name: str, made: Made, workers: list[int], repeats: int) -> None:
    ours, batch = Ours(made), made.size.batch
    check_resume(ours, 1)
    sides: dict[str, tuple[Callable[[], Iterator[object]], Callable[[], Iterator[object]], int]] = {
        "tensors": (ours.tensors, lambda: theirs_tensors(made), 1)
    }
    for count in workers:
        loader = TheirBatches(made, count)
        sides[f"batches, {count} workers"] = (lambda n=count: ours.batches(n), loader, batch)  # type: ignore[misc]
    for side, (mine, theirs, samples) in sides.items():
        turns = [(rate(mine, samples), rate(theirs, samples)) for _ in range(repeats + 1)][1:]  # the first warms up
        mine_rate, their_rate = (statistics.median(column) for column in zip(*turns, strict=True))
        ratio = statistics.median(a / b for a, b in turns)
        print(f"{name:12}{side:22}{mine_rate:>12,.0f}{their_rate:>14,.0f}{ratio:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=256, help="of samples for every size")
    parser.add_argument("--only", choices=SIZES, help="one size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'samples/s':34}{'ours':>12}{'webdataset':>14}{'ratio':>10}")
    for name, size in SIZES.items():
        if options.only in (None, name):
            each = 32 * size.t * size.h * size.w + 4 * size.slots * size.width
            count = min(4096, max(8 * size.batch, options.megabytes * 1_000_000 // each))
            with tempfile.TemporaryDirectory() as folder:
                made = make(Path(folder), size, count // (8 * size.batch) * 8 * size.batch)
                compare(name, made, options.workers, options.repeats)


if __name__ == "__main__":
    main()
