"""Reading samples from shards, bytes only, one process: ours against webdataset, litdata and mosaicml-streaming.

    python tests/benchmarks/bench_shards.py [--megabytes 192] [--repeats 5] [--only 37k]

The same samples (latent, text, json) for every reader, files in the page cache. Ours reads in random order through
the index: bytes only, with every member held against its sha256, and through training's store, which checks too and
looks the sample up. webdataset streams the same tar files in order, unchecked; it is also timed with its shuffle
buffer. litdata and mosaicml-streaming read their own formats, written here, in order; where a package is not
installed its row says absent. Figures are samples per CPU second (process time, all threads), medians over the
repeats, readers taking turns.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset

from dataprep.shards import Sample, ShardWriter
from m4v.core.shard_index import MEMBER_SUFFIX, MEMBERS, SCHEMA, iterate, member
from m4v.core.shard_reader import ShardReader
from training.loader import SampleStore

# name: bytes of latent, text and json. 128 and 512 px images and clips with small text features, and the product's
# 384p image and 57-frame 768p clip with T5 features.
SIZES = {
    "7k": (2_048, 4_096, 1_024), "37k": (12_288, 24_576, 1_024), "150k": (73_728, 73_728, 1_024),
    "1.2M": (122_880, 1_052_672, 1_024), "5M": (3_932_160, 1_052_672, 1_024),
}  # fmt: skip
Reader = Callable[[], Iterator[int]]  # gives the bytes of each sample


@dataclass(frozen=True)
class Made:
    """The samples on disk: `shards` as tar files with `index`, and the same members as dictionaries."""

    root: Path
    index: pa.Table
    members: list[dict[str, bytes]]


def make(root: Path, sizes: tuple[int, ...], count: int) -> Made:
    rng = np.random.default_rng(0)
    rows, members = [], []
    with ShardWriter(root / "shards", samples=1000, size_bytes=1 << 30) as writer:
        for _ in range(count):
            content = {name: rng.bytes(size) for name, size in zip(MEMBERS, sizes, strict=True)}
            key = hashlib.sha256(content["meta"]).hexdigest()[:32]
            row: dict[str, object] = {"sample_id": key, "clip_id": key}
            for name, reference in writer.add(Sample(key, "bucket", content)).items():
                row |= {
                    "shard": reference.shard, f"{name}_offset": reference.offset,
                    f"{name}_size": reference.size_bytes, f"{name}_sha256": reference.sha256,
                }  # fmt: skip
            rows.append(row)
            members.append(content)
    return Made(root, pa.Table.from_pylist(rows, schema=SCHEMA), members)


def ours(made: Made, check: bool) -> Reader:
    reader = ShardReader(lambda name: made.root / "shards" / name, check=check)
    places = [[member(row, name) for name in MEMBERS] for row in iterate(made.index)]
    order = np.random.default_rng(1).permutation(len(places))

    def read() -> Iterator[int]:
        for number in order:
            yield sum(len(reader.read(place)) for place in places[number])

    return read


def by_training(made: Made) -> Reader:
    store = SampleStore(lambda name: made.root / name, made.index)
    keys = made.index["sample_id"].to_pylist()
    order = np.random.default_rng(1).permutation(len(keys))

    def read() -> Iterator[int]:
        for number in order:
            yield sum(len(store._bytes(keys[number], name)) for name in MEMBERS)

    return read


def by_webdataset(made: Made, buffer: int) -> Reader:
    urls = [str(p) for p in sorted((made.root / "shards").glob("*.tar"))]

    def read() -> Iterator[int]:
        dataset = webdataset.WebDataset(urls, shardshuffle=False)
        for sample in dataset.shuffle(buffer) if buffer else dataset:
            yield sum(len(sample[suffix]) for suffix in MEMBER_SUFFIX.values())

    return read


def by_litdata(made: Made) -> Reader:
    streaming = importlib.import_module("litdata.streaming")
    folder = made.root / "litdata"
    cache = importlib.import_module("litdata.streaming.cache").Cache(str(folder), chunk_bytes="64MB")
    for number, content in enumerate(made.members):
        cache[number] = content
    cache.done()
    cache.merge()

    def read() -> Iterator[int]:
        for sample in streaming.StreamingDataset(str(folder), shuffle=False):
            yield sum(len(sample[name]) for name in MEMBERS)

    return read


def by_streaming(made: Made) -> Reader:
    streaming = importlib.import_module("streaming")
    folder = made.root / "mds"
    with streaming.MDSWriter(out=str(folder), columns=dict.fromkeys(MEMBERS, "bytes")) as writer:
        for content in made.members:
            writer.write(content)
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=1)

    def read() -> Iterator[int]:
        for number in range(len(made.members)):
            yield sum(len(value) for value in dataset[number].values())

    return read


READERS: dict[str, tuple[str, Callable[[Made], Reader]]] = {
    "ours": ("m4v", lambda made: ours(made, check=False)),
    "ours, sha256 checked": ("m4v", lambda made: ours(made, check=True)),
    "ours, training's store": ("training", by_training),
    "webdataset": ("webdataset", lambda made: by_webdataset(made, 0)),
    "webdataset, shuffled": ("webdataset", lambda made: by_webdataset(made, 1000)),
    "litdata": ("litdata", by_litdata),
    "mosaicml-streaming": ("streaming", by_streaming),
}


def samples_per_cpu_second(read: Reader, expected: int) -> float:
    started, total, count = time.process_time(), 0, 0
    for size in read():
        total += size
        count += 1
    seconds = time.process_time() - started
    if total != expected:
        raise AssertionError(f"a reader gave {total} bytes, {expected} were written")
    return count / seconds


def compare(sizes: tuple[int, ...], megabytes: int, repeats: int) -> dict[str, float | None]:
    """Median rate of every reader; None for one that is not installed."""
    count = min(20_000, max(8, megabytes * 1_000_000 // sum(sizes)))
    with tempfile.TemporaryDirectory() as directory:
        made = make(Path(directory), sizes, count)
        present = {n: open_(made) for n, (package, open_) in READERS.items() if importlib.util.find_spec(package)}
        rates: dict[str, list[float]] = {name: [] for name in present}
        for turn in range(repeats + 1):
            for name, read in present.items():
                rate = samples_per_cpu_second(read, count * sum(sizes))
                if turn:  # the first fills caches and opens files
                    rates[name].append(rate)
    return {name: statistics.median(rates[name]) if name in rates else None for name in READERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=192, help="of samples for every size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=SIZES, help="one size")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    columns = {
        name: compare(sizes, arguments.megabytes, arguments.repeats)
        for name, sizes in SIZES.items()
        if arguments.only in (None, name)
    }
    print(f"{'samples per CPU second':32}" + "".join(f"{name:>12}" for name in columns))
    for reader in READERS:
        rates = [column[reader] for column in columns.values()]
        print(f"{reader:32}" + "".join(f"{'absent' if r is None else f'{r:,.0f}':>12}" for r in rates))
    for reader in (name for name in READERS if not name.startswith("ours")):
        ratios = [(c["ours"] or 0) / rate if (rate := c[reader]) else None for c in columns.values()]
        print(f"{'ours / ' + reader:32}" + "".join(f"{'-' if r is None else f'{r:.2f}':>12}" for r in ratios))


if __name__ == "__main__":
    main()
