"""Dataset versions and a redacted clip table over a generated index, for `bench_scale.py`: the stages themselves run.

Only the first shards of the generated dataset lie on disk, as holes of the right size: an operation may move samples
out of these and must leave every other shard where it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scale_manifest import MEMBER_BYTES, MEMBER_STRIDE, PER_SHARD, TOUCHED

from dataprep.curation.table import CLIPS
from dataprep.encode.dataset import DATASET, NULL_TEXT, write_facts
from dataprep.quarantine import QUARANTINE, write_quarantine
from dataprep.shards import SHARDS, shard_name
from dataprep.stages import redact, version
from m4v.core.artifacts import ArtifactKind, Manifest, ManifestFile, write_manifest
from m4v.core.canonical import digest_json
from m4v.core.shard_index import INDEX
from m4v.core.stage import InputRef, OutputRef, StageContext, StageRequest

_GONE = 300  # clips that are taken out
_BUCKETS = [(t, h, w) for h, w in ((96, 160), (48, 80)) for t in (2, 4, 8, 16)]


def merge(work: Path, rows: int) -> dict[str, object]:
    """Two datasets, of every other row group, as one: all shards are shared."""
    parents = [_dataset(work / f"half-{k}", _halves(work / INDEX, work / f"half-{k}", k), k) for k in (0, 1)]
    facts = _version(work / "merged", {"kind": "merge"}, *parents)
    shards = sum(len(_shards(parent / INDEX)) for parent in parents)
    _expect((facts["samples"], _made(facts)), (rows, (shards, 0)))
    return {"samples": facts["samples"], "shards_shared": shards}


def subset(work: Path, rows: int) -> dict[str, object]:
    """One bucket's samples of the shards that lie on disk."""
    names = [shard_name(k) for k in range(TOUCHED)]
    where = [{"column": "shard", "test": "in", "value": names}, {"column": "bucket_t", "test": "==", "value": 8}]
    facts = _version(work / "subset", {"kind": "subset", "where": where}, _whole(work))
    expected = min(rows, TOUCHED * PER_SHARD) // 4
    _expect(facts["samples"], expected)
    return {"samples": facts["samples"]}


def remove(work: Path, rows: int) -> dict[str, object]:
    """Clips by their ids, with those that overlap them, and by a perceptual hash; a few shards are written anew."""
    clips = pq.ParquetFile(work / "clips" / CLIPS, pre_buffer=False)
    first = next(clips.iter_batches(batch_size=PER_SHARD * TOUCHED, columns=["clip_id", "phash"]))
    named = first["clip_id"].to_pylist()[1 : 10 * _GONE + 1 : 10]
    operation = {
        "kind": "remove", "clips": named, "overlapping": True, "phashes": [first["phash"][0].as_py()], "phash_bits": 2,
    }  # fmt: skip
    facts = _version(work / "removed", operation, _whole(work))
    _expect(facts["samples"], rows - len(named) - 1)
    return {"samples": facts["samples"], "shards_written": _made(facts)[1]}


def redacted(work: Path, rows: int) -> dict[str, object]:
    """The clip table without the same clips."""
    before = work / "clips"
    clips = pq.ParquetFile(before / CLIPS, pre_buffer=False)
    named = next(clips.iter_batches(batch_size=10 * _GONE, columns=["clip_id"]))["clip_id"].to_pylist()[::10]
    counted: dict[str, object] = {
        "clips": rows,
        "kept": rows,
        "kept_videos": rows,
        "kept_seconds": 2.56 * rows,
        "quarantined": 0,
    }
    manifest(before, ArtifactKind.CLIPS, [], counted)
    context = stage_context(
        work / "redact", "dataprep.stages.redact:run", "dataprep.redact_config:RedactConfig",
        {"clips": named, "reason": "withdrawn"}, [("clips", before)], ("clips", ArtifactKind.CLIPS),
    )  # fmt: skip
    redact.run(context)
    left = pq.ParquetFile(context.output("clips") / CLIPS).metadata.num_rows
    context.progress.close()
    shutil.rmtree(work / "redact")
    _expect(left, rows - len(named))
    return {"clips": left}


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"{found} instead of {expected}")


def _made(facts: dict[str, object]) -> tuple[int, int]:
    told = facts["version"]
    assert isinstance(told, dict)
    return told["shards_shared"], told["shards_written"]


def _whole(work: Path) -> Path:
    parent = work / "whole"
    if not parent.exists():
        parent.mkdir()
        os.link(work / INDEX, parent / INDEX)
        _dataset(parent, _shards(parent / INDEX), 0)
        (parent / SHARDS).mkdir()
        for number in range(TOUCHED):
            with (parent / SHARDS / shard_name(number)).open("wb") as stream:
                stream.truncate(PER_SHARD * MEMBER_STRIDE + MEMBER_BYTES)
    return parent


def _halves(index: Path, target: Path, odd: int) -> list[str]:
    """Writes every other row group; its shards get names of their own, for one shard is in one dataset."""
    target.mkdir()
    whole = pq.ParquetFile(index, pre_buffer=False)
    with pq.ParquetWriter(target / INDEX, whole.schema_arrow, compression="lz4") as writer:
        for number in range(odd, whole.num_row_groups, 2):
            writer.write_table(whole.read_row_group(number))
    return _shards(target / INDEX)


def _shards(index: Path) -> list[str]:
    return sorted(pq.read_table(index, columns=["shard"])["shard"].unique().to_pylist())


def _dataset(parent: Path, shards: list[str], number: int) -> Path:
    buckets = [
        {"media": "video", "frames": 8 * t - 7, "height": 8 * h, "width": 8 * w, "latent": [t, h, w]}
        for t, h, w in _BUCKETS
    ]
    facts = {
        "schema_version": 1, "codec": {"digest": "c"}, "text_encoder": {"digest": "t"}, "encoder_digest": "e" * 64,
        "fps": 24.0, "buckets": buckets,
    }  # fmt: skip
    write_facts(parent / DATASET, facts)
    (parent / NULL_TEXT).write_bytes(bytes(8))
    write_quarantine(parent / QUARANTINE, [])
    files = [
        ManifestFile(path=f"{SHARDS}/{name}", size_bytes=1 << 20, sha256=digest_json([number, name])) for name in shards
    ]
    return manifest(parent, ArtifactKind.DATASET, files, {})


def manifest(place: Path, kind: ArtifactKind, more: list[ManifestFile], summary: dict[str, object]) -> Path:
    own = [
        ManifestFile(path=file.name, size_bytes=file.stat().st_size, sha256=digest_json(file.name))
        for file in place.iterdir()
        if file.is_file()
    ]
    files = sorted([*own, *more], key=lambda f: f.path)
    write_manifest(place, Manifest(kind=kind, files=tuple(files), summary=summary))
    return place


def _version(work: Path, operation: dict[str, object], *parents: Path) -> dict[str, object]:
    """`dataset.json` of the version; the rest is deleted."""
    context = stage_context(
        work, "dataprep.stages.version:run", "dataprep.versions.config:VersionConfig", {"operation": operation},
        [(f"dataset.{n}", parent) for n, parent in enumerate(parents)], ("dataset", ArtifactKind.DATASET),
    )  # fmt: skip
    version.run(context)
    context.progress.close()
    _check_order(context.output("dataset") / INDEX)
    facts: dict[str, object] = json.loads((context.output("dataset") / DATASET).read_bytes())
    shutil.rmtree(work)
    return facts


def _check_order(index: Path) -> None:
    before = ""
    for clips in _column(index, "clip_id"):
        ordered = clips.equals(clips.sort())
        _expect((ordered, clips[0].as_py() >= before), (True, True))
        before = clips[len(clips) - 1].as_py()


def _column(index: Path, name: str) -> Iterator[pa.Array]:
    for batch in pq.ParquetFile(index, pre_buffer=False).iter_batches(columns=[name]):
        yield batch[name]


def stage_context(
    work: Path, function: str, model: str, config: dict[str, object], inputs: list[tuple[str, Path]],
    output: tuple[str, ArtifactKind], locations: dict[str, str] | None = None,
) -> StageContext:  # fmt: skip
    refs = []
    for name, place in inputs:
        manifest = Manifest.model_validate_json((place / "manifest.json").read_bytes())
        refs.append(InputRef(name=name, kind=manifest.kind, artifact_id=manifest.artifact_id, uri=str(place)))
    return StageContext(
        StageRequest(
            stage="bench",
            stage_version=1,
            function=function,
            config_model=model,
            stage_key="k",
            attempt_id="a",
            config=config,
            seed=0,
            inputs=tuple(refs),
            outputs=(OutputRef(name=output[0], kind=output[1]),),
            store_uri=str(work / "store"),
            work_dir=str(work),
            state_uri=str(work / "state"),
            items_uri=str(work / "items"),
            locations=locations or {},
        )
    )
