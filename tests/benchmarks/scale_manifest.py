"""A generated collection of any size for `bench_scale.py`: a WebVid table, a clip table with hashes, an index.

Chunk c is drawn from its number alone. Its first rows are near copies of rows of chunk c - 1, its next ones have
their very pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curation import candidates, table
from m4v.core import shard_index
from m4v.core.canonical import digest_bytes

CHUNK = 100_000
SAMPLED, DENSE, FRAMES = 8, 16, 64
NEAR, EQUAL = 0.05, 0.01  # shares of a chunk that copy the chunk before
PER_SHARD, TOUCHED = 1000, 3  # samples of a shard; shards of which every member is so many zeros
MEMBER_BYTES, MEMBER_STRIDE = 4_000, 40_960
_FLIPPED = 4  # most bits of a frame's hash that differ in a copy
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_CAPTION = "A boat passes under an old stone bridge while people watch from the bank"


def chunks(rows: int) -> Iterator[tuple[int, int]]:
    """Number and rows of each chunk."""
    for number in range(-(-rows // CHUNK)):
        yield number, min(CHUNK, rows - number * CHUNK)


def copies(rows: int) -> tuple[int, int]:
    """How many near and equal copies a collection of so many rows has."""
    sizes = [count for number, count in chunks(rows) if number]
    return sum(int(NEAR * n) for n in sizes), sum(int(EQUAL * n) for n in sizes)


def write_webvid(root: Path, rows: int) -> None:
    """WebVid's CSV; no video is there, so each row is validated and written down as to be fetched."""
    root.mkdir(parents=True)
    with (root / "results_10M_train.csv").open("w") as stream:
        stream.write("videoid,name,page_idx,page_dir,duration,contentUrl\n")
        for number, count in chunks(rows):
            first = number * CHUNK
            stream.writelines(
                f'{i},"{_CAPTION}, {i}",{i},{i // 50:06d}_{i // 50 + 49:06d},PT00H00M17S,'
                f"https://videos.example.com/{i}/preview/stock-footage-{i}.mp4\n"
                for i in range(first, first + count)
            )


def write_clips(root: Path, rows: int) -> None:
    """`clips.parquet` and `hashes.parquet` as the curate stage writes them."""
    root.mkdir(parents=True)
    with (
        pq.ParquetWriter(root / table.CLIPS, table.SCHEMA, compression="lz4") as clips,
        pq.ParquetWriter(root / candidates.HASHES, candidates.SCHEMA, compression="lz4") as hashes,
    ):
        for number, count in chunks(rows):
            frames, content = _pictures(number, count)
            clips.write_table(_clip_rows(number, frames, content), row_group_size=8192)
            hashes.write_table(_hash_rows(number, frames), row_group_size=8192)


def index_tables(clips: Path) -> Iterator[pa.Table]:
    """Index rows, unsorted, for every kept clip of a clip table: one sample each, in one of eight buckets."""
    columns = ["clip_id", "source", "source_id", "source_digest", "start_us", "end_us", "phash", "media", "licence"]
    first = 0
    stored = pq.ParquetFile(clips, pre_buffer=False)
    for batch in stored.iter_batches(batch_size=CHUNK, columns=[*columns, "caption_digest"]):
        count, numbers = len(batch), np.arange(first, first + len(batch))
        first += count
        bucket = numbers % 8
        t, h, w = np.array([2, 4, 8, 16])[bucket % 4], np.where(bucket < 4, 96, 48), np.where(bucket < 4, 160, 80)
        made = {
            **{name: batch[name] for name in columns},
            "sample_id": _hex(_generator(first, "sample"), count, 16),
            "shard": pa.array(np.char.add(np.char.zfill((numbers // PER_SHARD).astype(str), 6), ".tar")),
            "bucket_t": t, "bucket_h": h, "bucket_w": w, "tokens": t * h * w // 4, "captions": np.ones(count),
            "caption_digest": batch["caption_digest"],
        }  # fmt: skip
        for member in shard_index.MEMBERS:
            made[f"{member}_offset"] = numbers % PER_SHARD * MEMBER_STRIDE + 512
            made[f"{member}_size"] = np.full(count, MEMBER_BYTES)
            digests = _hex(_generator(first, member), count, 32)
            zeros = pa.array(numbers < TOUCHED * PER_SHARD)
            made[f"{member}_sha256"] = pc.if_else(zeros, digest_bytes(bytes(MEMBER_BYTES)), digests)
        yield _table(made, shard_index.SCHEMA, count)


def _generator(*key: int | str) -> np.random.Generator:
    return np.random.default_rng([part if isinstance(part, int) else sum(part.encode()) for part in key])


def _pictures(number: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """(count, DENSE) hashes of frames and (count, 16) digests of pictures."""
    generator = _generator(number, "pictures")
    frames = generator.integers(1, 1 << 64, (CHUNK, DENSE), dtype=np.uint64)
    content = generator.integers(0, 256, (CHUNK, 16), dtype=np.uint8)
    if number:
        before = _generator(number - 1, "pictures")
        other = before.integers(1, 1 << 64, (CHUNK, DENSE), dtype=np.uint64)
        other_content = before.integers(0, 256, (CHUNK, 16), dtype=np.uint8)
        near, equal = int(NEAR * count), int(EQUAL * count)
        taken = np.arange(near + equal) + CHUNK // 2  # rows that are no copies themselves
        frames[: near + equal] = other[taken]
        for _ in range(_FLIPPED):
            bits = np.uint64(1) << generator.integers(0, 64, (near, DENSE), dtype=np.uint64)
            frames[:near] ^= np.where(generator.random((near, DENSE)) < 0.5, bits, np.uint64(0))
        content[near : near + equal] = other_content[taken[near:]]
    return frames[:count], content[:count]


def _clip_rows(number: int, frames: NDArray[np.uint64], content: NDArray[np.uint8]) -> pa.Table:
    count, generator = len(frames), _generator(number, "scores")
    numbers = np.arange(number * CHUNK, number * CHUNK + count)
    texts = pa.array([f"{_CAPTION}, {n}" for n in numbers.tolist()])
    made: dict[str, object] = {
        "clip_id": _hex(_generator(number, "clip"), count, 16), "source": ["webvid"] * count,
        "source_id": pa.array(numbers).cast(pa.string()), "path": pa.array(numbers).cast(pa.string()),
        "source_digest": _hex(_generator(number, "file"), count, 32), "size_bytes": numbers + 1_000_000,
        "media": ["video"] * count, "start_us": np.zeros(count), "end_us": np.full(count, 2_560_000),
        "first_frame": np.zeros(count), "frames": np.full(count, FRAMES), "fps": np.full(count, 25.0),
        "width": np.full(count, 596), "height": np.full(count, 336),
        "crop": pa.ListArray.from_arrays(np.arange(count + 1) * 4, np.tile([0, 0, 596, 336], count)),
        "captions": pa.ListArray.from_arrays(np.arange(count + 1), texts),
        "caption_digest": _hex(_generator(number, "caption"), count, 32),
        **{f"score_{name}": np.round(generator.random(count), 4) for name in table.SCORES},
        "phash": _phash_text(frames[:, :: DENSE // SAMPLED]), "content_digest": _texts(_digits(content)),
        "kept": np.ones(count, dtype=np.bool_), "licence": ["unknown"] * count,
    }  # fmt: skip
    return _table(made, table.SCHEMA, count)


def _hash_rows(number: int, frames: NDArray[np.uint64]) -> pa.Table:
    count = len(frames)
    offsets = (np.arange(count + 1) * DENSE * 8).astype(np.int32)
    dense = pa.BinaryArray.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(frames.astype("<u8").tobytes())]
    )
    ids = _hex(_generator(number, "clip"), count, 16)
    order = pa.array(np.arange(number * CHUNK, number * CHUNK + count))
    return pa.Table.from_arrays([ids, order, pa.array(np.zeros(count, np.bool_)), dense], schema=candidates.SCHEMA)


def _table(columns: dict[str, object], schema: pa.Schema, count: int) -> pa.Table:
    """Columns that are not given are null."""
    arrays = [pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _hex(generator: np.random.Generator, count: int, size: int) -> pa.StringArray:
    return _texts(_digits(generator.integers(0, 256, (count, size), dtype=np.uint8)))


def _digits(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 2 * bytes) hexadecimal digits."""
    return np.stack([_HEX[values >> 4], _HEX[values & 15]], axis=-1).reshape(len(values), -1)


def _phash_text(hashes: NDArray[np.uint64]) -> pa.StringArray:
    digits = _digits(hashes.astype(">u8").view(np.uint8).reshape(len(hashes), -1)).reshape(len(hashes), -1, 16)
    dashed = np.full((*digits.shape[:2], 17), ord("-"), dtype=np.uint8)
    dashed[..., :16] = digits
    return _texts(dashed.reshape(len(hashes), -1)[:, :-1])


def _texts(characters: NDArray[np.uint8]) -> pa.StringArray:
    """Strings of one length from (n, length) ASCII codes."""
    count, length = characters.shape
    offsets = (np.arange(count + 1) * length).astype(np.int32)
    data = pa.py_buffer(np.ascontiguousarray(characters).tobytes())
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), data)
