"""Damaged files of a dataset, made again from what survives and put in place only when they are the very bytes.

A file comes from an equal one of another artifact; a shard also from its members, wherever they are whole: in the
damaged shard itself, in other versions, in encode's item store; an index also from its shards. Every file is swapped
in atomically, so a repair that is killed goes on when it is run again.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.encode.jobs import latent_shape_of
from dataprep.shards import SHARDS, Sample, ShardWriter, member_name
from m4v.core.artifacts import MANIFEST, Manifest, ManifestFile
from m4v.core.canonical import digest_bytes, digest_file
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX, MEMBERS, PATCH_AREA, SCHEMA, iterate, member, read_index, write_index_table
from m4v.core.storage import Storage, is_temporary, storage_faults, sync_directory, sync_tree, temporary_beside

UNFINISHED_S = 3600.0
_UNLIMITED = 1 << 62
_FROM_META = (
    "sample_id", "clip_id", "source", "source_id", "source_digest", "start_us", "end_us", "phash", "media",
    "caption_digest", "licence",
)  # fmt: skip
Row = Mapping[str, object]


class MemberSource(Protocol):
    """Where members of samples may be found; what it gives is checked before it is used."""

    name: str

    def get(self, row: Row, member_kind: str) -> bytes | None: ...


class Copy(NamedTuple):
    """A file elsewhere that should have the same bytes."""

    place: Storage
    path: str


@dataclass
class Repair:
    """What became of the damaged files: path -> where its bytes came from, path -> why it stays damaged."""

    repaired: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def damaged_files(place: Storage, manifest: Manifest) -> list[ManifestFile]:
    """Files that are gone or are not what the manifest says; every byte is read."""
    present = {f.path: f.size_bytes for f in place.list()}
    return [
        file
        for file in manifest.files
        if present.get(file.path) != file.size_bytes or place.digest(file.path) != file.sha256
    ]


def repair(
    place: Storage, manifest: Manifest, copies: Callable[[str], Iterable[Copy]], sources: Sequence[MemberSource]
) -> Repair:
    """Make every damaged file of an artifact whole that can be.

    `copies` gives candidates for a sha256. Raises InfrastructureError when the disk or the store refuses.
    """
    found = Repair()
    _drop_unfinished(place)
    wanted = {f.path for f in manifest.files} | {MANIFEST}
    strays = sorted(f.path for f in place.list() if f.path not in wanted)
    found.left = dict.fromkeys(strays, "is no file of this artifact: move it elsewhere")
    damaged = damaged_files(place, manifest)
    # The index names what a shard holds, so it goes first.
    for file in sorted(damaged, key=lambda f: (f.path.startswith(f"{SHARDS}/"), f.path)):
        how = _from_copy(place, file, copies(file.sha256))
        try:
            if how is None and file.path == INDEX:
                how = _from_shards(place, file, manifest)
            elif how is None and file.path.startswith(f"{SHARDS}/"):
                how = _from_members(place, file, sources)
        except (InputError, DataIntegrityError) as error:
            found.left[file.path] = error.what if error.value is None else f"{error.what}: {error.value}"
            continue
        if how is None:
            found.left[file.path] = "no artifact holds another copy"
        else:
            found.repaired[file.path] = how
    return found


def _drop_unfinished(place: Storage) -> None:
    """Delete what a repair that was killed left inside the artifact; a younger file may be of one at work."""
    if not place.is_local:
        return
    for path in place.local_root.rglob("*"):
        if is_temporary(path.name) and path.stat().st_ctime < time.time() - UNFINISHED_S:
            path.unlink(missing_ok=True)


def _from_copy(place: Storage, file: ManifestFile, copies: Iterable[Copy]) -> str | None:
    for copy in copies:
        try:
            if copy.place.digest(copy.path) != file.sha256:
                continue
            place.share(copy.place, copy.path, file.path, file.sha256)
        except (InputError, DataIntegrityError):
            continue  # gone or damaged there too
        return f"the same file of artifact {copy.place.uri.rsplit('/', 1)[-1][:12]}"
    return None


def _from_members(place: Storage, file: ManifestFile, sources: Sequence[MemberSource]) -> str:
    """Raises DataIntegrityError naming the first member that is nowhere, or when the index cannot be read."""
    shard = file.path.removeprefix(f"{SHARDS}/")
    rows = sorted(_rows_of(place, shard), key=lambda r: int(str(r["latent_offset"])))
    pools: list[MemberSource] = [_Itself(place), *sources]
    used: set[str] = set()
    with _scratch(place) as directory:
        with ShardWriter(directory, samples=_UNLIMITED, size_bytes=_UNLIMITED, first=int(Path(shard).stem)) as writer:
            for row in rows:
                writer.add(Sample(str(row["sample_id"]), "", {m: _whole(row, m, pools, used) for m in MEMBERS}))
        _install(directory / shard, place, file)
    return " and ".join(sorted(used))


def _rows_of(place: Storage, shard: str) -> list[dict[str, object]]:
    with _local(place, INDEX) as path:
        table = read_index(path)
    return list(iterate(table.filter(pc.equal(table["shard"], shard))))


def _whole(row: Row, name: str, pools: Sequence[MemberSource], used: set[str]) -> bytes:
    reference = member(dict(row), name)
    for pool in pools:
        data = pool.get(row, name)
        if data is not None and digest_bytes(data) == reference.sha256:
            used.add(pool.name)
            return data
    raise DataIntegrityError("no copy of a member is left", value=member_name(str(row["sample_id"]), name))


class _Itself:
    """Members of the damaged shard that are whole still."""

    name = "its own whole members"

    def __init__(self, place: Storage) -> None:
        self._place = place

    def get(self, row: Row, member_kind: str) -> bytes | None:
        return read_range(self._place, row, member_kind)


def read_range(place: Storage, row: Row, name: str) -> bytes | None:
    """Bytes where the index says a member stands, unchecked; None when there is no such file."""
    reference = member(dict(row), name)
    try:
        with place.open(f"{SHARDS}/{reference.shard}") as stream, storage_faults(place.uri):
            stream.seek(reference.offset)
            return stream.read(reference.size_bytes)
    except InputError:
        return None


def _from_shards(place: Storage, file: ManifestFile, manifest: Manifest) -> str:
    rows: list[dict[str, object]] = []
    for path in (f.path for f in manifest.files if f.path.startswith(f"{SHARDS}/")):
        with _local(place, path) as local:
            rows.extend(_rows_in(local, path.removeprefix(f"{SHARDS}/")))
    with _scratch(place) as directory:
        write_index_table(directory / INDEX, pa.Table.from_pylist(rows, schema=SCHEMA))
        _install(directory / INDEX, place, file)
    return "its shards"


def _rows_in(path: Path, shard: str) -> Iterator[dict[str, object]]:
    """Index rows as the samples of a shard tell them themselves; raises DataIntegrityError when they do not."""
    found: dict[str, dict[str, object]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                name = next(m for m in MEMBERS if member_name(key, m) == f"{key}.{suffix}")
                stream = tar.extractfile(info)
                data = b"" if stream is None else stream.read()
                place = {"offset": info.offset_data, "size": len(data), "sha256": digest_bytes(data)}
                row = found.setdefault(key, {"shard": shard})
                row |= {f"{name}_{field}": value for field, value in place.items()} | _told(name, data)
    except (tarfile.TarError, ValueError, KeyError, StopIteration, EOFError) as error:
        raise DataIntegrityError(f"shard cannot be read: {error}", value=shard) from None
    yield from found.values()


def _told(name: str, data: bytes) -> dict[str, object]:
    if name == "latent":
        t, h, w = latent_shape_of(data)
        return {"bucket_t": t, "bucket_h": h, "bucket_w": w, "tokens": t * h * w // PATCH_AREA}
    if name == "meta":
        facts = json.loads(data)
        return {**{key: facts[key] for key in _FROM_META}, "captions": len(facts["captions"])}
    return {}


def _install(made: Path, place: Storage, file: ManifestFile) -> None:
    """Put a file that was made again in its place, in one step; raises DataIntegrityError when it is another."""
    if digest_file(made) != file.sha256:
        raise DataIntegrityError("what was made again has other bytes", value=file.path)
    if not place.is_local:
        place.put_file(made, file.path)
        return
    target = place.local_root / file.path
    with storage_faults(place.uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_tree(made.parent)
        made.replace(target)
        sync_directory(target.parent)


@contextmanager
def _scratch(place: Storage) -> Iterator[Path]:
    """A directory beside the artifact (on its file system), which the store sweeps should this process die."""
    if not place.is_local:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
        return
    beside = temporary_beside(place.local_root)
    try:
        with storage_faults(place.uri):
            beside.mkdir(parents=True)
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _local(place: Storage, path: str) -> Iterator[Path]:
    """Local path of a file, a copy for the time of the block when it lies elsewhere."""
    if place.is_local:
        if not (place.local_root / path).exists():
            raise InputError("file does not exist", value=path)
        yield place.local_root / path
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield place.fetch(path, Path(scratch) / "file")
