"""Every member of a dataset held against its index, and against what a sample must be.

Sizes and digests, tar headers, finite latents and text of the right shape, and sample ids that follow from the
dataset's encoder digest: a sample of other encoders shows even where its bytes are whole. Torch-free.
"""

from __future__ import annotations

import json
import math
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dataprep.encode.dataset import DATASET, NULL_TEXT, encoder_facts
from dataprep.shards import SHARDS, member_name
from m4v.codec.shape import CHANNELS
from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError, InputError, M4VError
from m4v.core.ids import sample_id
from m4v.core.shard_index import INDEX, MEMBERS, iterate, member, read_index
from m4v.core.storage import Storage

_LENGTH_BYTES = 8
# Word in numpy, and where an all-ones exponent stands for infinity and NaN.
_FLOATS: dict[str, tuple[str, int]] = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000)}
_OTHERS = {"BOOL": 1, "I32": 4, "I64": 8, "U8": 1}


class Problem(NamedTuple):
    """One thing that is wrong. `file` is the path in the artifact; `key`, `member` are empty where a whole file is
    meant."""

    file: str
    key: str
    member: str
    what: str

    @property
    def place(self) -> str:
        return " ".join(part for part in (self.file, f"{self.key} {self.member}".strip()) if part)


class Tensor(NamedTuple):
    kind: str  # as safetensors names it
    shape: tuple[int, ...]
    finite: bool


def check_dataset(place: Storage) -> Iterator[Problem]:
    """Everything that is wrong with the samples of a dataset, shard by shard; nothing for a sound one."""
    try:
        facts = json.loads(place.read_bytes(DATASET))
        encoder = str(facts["encoder_digest"])
        names = {tuple(b["latent"]): f"{b['frames']}x{b['height']}x{b['width']}" for b in facts["buckets"]}
    except (InputError, ValueError, KeyError, TypeError) as error:
        yield Problem(DATASET, "", "", f"does not parse: {error}")
        return
    try:
        index = _index(place)
    except (M4VError, OSError) as error:
        yield Problem(INDEX, "", "", error.what if isinstance(error, M4VError) else f"does not parse: {error}")
        return
    yield from _check_rows(index, encoder, names)
    yield from _check_shards(place, index, encoder_facts(facts))
    yield from (Problem(NULL_TEXT, "", "", what) for what in _null_text(place))


def _index(place: Storage) -> pa.Table:
    if place.is_local:
        return read_index(place.local_root / INDEX)
    with tempfile.TemporaryDirectory() as scratch:
        return read_index(place.fetch(INDEX, Path(scratch) / INDEX))


def _check_rows(index: pa.Table, encoder: str, names: Mapping[tuple[int, ...], str]) -> Iterator[Problem]:
    """Order, and ids that follow from encoder digest and bucket."""
    before, seen = ("", ""), set[str]()
    for row in iterate(index.select(["clip_id", "sample_id", "bucket_t", "bucket_h", "bucket_w"])):
        clip, key = str(row["clip_id"]), str(row["sample_id"])
        latent = tuple(int(str(row[name])) for name in ("bucket_t", "bucket_h", "bucket_w"))
        if (clip, key) < before:
            yield Problem(INDEX, key, "", "is out of order")
        if key in seen:
            yield Problem(INDEX, key, "", "stands twice")
        before, bucket = (clip, key), names.get(latent)
        seen.add(key)
        if bucket is None:
            yield Problem(INDEX, key, "", f"has a latent of {list(latent)}, which {DATASET} does not name")
        elif sample_id(clip, encoder, bucket) != key:
            yield Problem(INDEX, key, "", f"is of other encoders than {encoder[:12]}")


def _check_shards(place: Storage, index: pa.Table, encoders: Mapping[str, object]) -> Iterator[Problem]:
    present = {f.path.removeprefix(f"{SHARDS}/") for f in place.list(SHARDS)} if place.exists(SHARDS) else set[str]()
    ordered = index.sort_by([("shard", "ascending"), ("latent_offset", "ascending")])
    rows: dict[str, dict[str, object]] = {}
    shard = ""
    for row in iterate(ordered):
        if row["shard"] != shard:
            if rows:
                yield from check_shard(place, shard, rows, encoders)
            shard, rows = str(row["shard"]), {}
        rows[str(row["sample_id"])] = row
    if rows:
        yield from check_shard(place, shard, rows, encoders)
    for name in sorted(present - set(index["shard"].to_pylist())):
        yield Problem(f"{SHARDS}/{name}", "", "", "is not in the index")


def check_shard(
    place: Storage, shard: str, rows: Mapping[str, Mapping[str, object]], encoders: Mapping[str, object] | None = None
) -> Iterator[Problem]:
    """One pass over a tar; `rows` are its index rows by sample id, `encoders` what every `KEY.json` must repeat."""
    path = f"{SHARDS}/{shard}"
    wanted = {member_name(key, name): (key, name) for key in rows for name in MEMBERS}
    try:
        with place.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                if info.name not in wanted:
                    yield Problem(path, "", info.name, "is not in the index")
                    continue
                key, name = wanted.pop(info.name)
                taken = tar.extractfile(info)
                data = b"" if taken is None else taken.read()
                yield from (
                    Problem(path, key, name, what) for what in _member(rows[key], name, info, data, encoders or {})
                )
    except InputError:
        yield Problem(path, "", "", "is gone")
        return
    except (tarfile.TarError, OSError, EOFError) as error:
        yield Problem(path, "", "", f"is no whole tar file: {error}")
    for key, name in wanted.values():
        yield Problem(path, key, name, "is missing")


def _member(
    row: Mapping[str, object], name: str, info: tarfile.TarInfo, data: bytes, encoders: Mapping[str, object]
) -> Iterator[str]:
    reference = member(dict(row), name)
    if info.offset_data != reference.offset:
        yield f"stands at {info.offset_data}, index says {reference.offset}"
    if len(data) != reference.size_bytes:
        yield f"has {len(data)} bytes, index says {reference.size_bytes}"
        return
    if digest_bytes(data) != reference.sha256:
        yield "bytes differ from the index"
        return
    if name == "meta":
        yield from _meta(row, data, encoders)
        return
    try:
        tensors = read_tensors(data)
    except DataIntegrityError as error:
        yield error.what
        return
    yield from (f"{tensor} holds values that are not finite" for tensor, found in tensors.items() if not found.finite)
    yield from _shapes(row, name, tensors)


def _meta(row: Mapping[str, object], data: bytes, encoders: Mapping[str, object]) -> Iterator[str]:
    try:
        facts: Any = json.loads(data)
        differing = [n for n in ("sample_id", "clip_id", "source", "source_id") if facts[n] != row[n]]
    except (ValueError, KeyError, TypeError) as error:
        yield f"does not parse: {error}"
        return
    yield from (f"{name} is {facts[name]!r}, index says {row[name]!r}" for name in differing)
    if "encoder_digest" not in facts:
        return  # of a dataset of before samples said so
    yield from (
        f"{name} is {_short(facts.get(name))}, {DATASET} says {_short(said)}: samples of other encoders are mixed in"
        for name, said in encoders.items() if facts.get(name) != said
    )  # fmt: skip
    times = facts.get("frame_times_us")
    if times is not None and (len(times) != facts["frames"] or times != sorted(times)):
        yield f"frame_times_us are no {facts['frames']} rising times"


def _short(value: object) -> object:
    return value.get("digest", value) if isinstance(value, dict) else value


def _shapes(row: Mapping[str, object], name: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    latent = (CHANNELS, row["bucket_t"], row["bucket_h"], row["bucket_w"])
    needed = ("mean",) if name == "latent" else ("embedding", "mask", "pooled")
    yield from (f"has no tensor {tensor}" for tensor in needed if tensor not in tensors)
    for tensor, found in tensors.items():
        if name == "latent" and found.kind != "BF16":
            yield f"{tensor} is {found.kind}, not bf16"
        if name == "latent" and found.shape != latent:
            yield f"{tensor} has shape {list(found.shape)}, index says {list(latent)}"
        if name == "text" and found.shape[:1] != (row["captions"],):
            yield f"{tensor} has shape {list(found.shape)} for {row['captions']} captions"


def _null_text(place: Storage) -> Iterator[str]:
    try:
        tensors = read_tensors(place.read_bytes(NULL_TEXT))
    except M4VError as error:
        yield error.what
        return
    yield from (f"{tensor} holds values that are not finite" for tensor, found in tensors.items() if not found.finite)


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Shapes of a safetensors file, and whether every value is finite; raises DataIntegrityError when it is none."""
    try:
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        body = memoryview(data)[_LENGTH_BYTES + length :]
        return {n: _tensor(body, t) for n, t in header.items() if n != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataIntegrityError(f"is no safetensors file: {error}") from None


def _tensor(body: memoryview, entry: Mapping[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    shape, kind = tuple(int(n) for n in entry["shape"]), entry["dtype"]
    width = int(_FLOATS[kind][0][-1]) if kind in _FLOATS else _OTHERS[kind]
    if end > len(body) or end - start != math.prod(shape) * width:
        raise ValueError("a tensor's bytes do not fit its shape")
    if kind not in _FLOATS:
        return Tensor(kind, shape, True)
    word, exponent = _FLOATS[kind]
    values = np.frombuffer(body[start:end], word)
    return Tensor(kind, shape, not bool(((values & exponent) == exponent).any()))
