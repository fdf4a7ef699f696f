"""Published files become the files of a `weights` artifact: safetensors with our keys, configs, tokenizers.

Never more than a few MiB of a model are in memory. Equal sources give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from m4v.core.canonical import canonical_json, digest_file
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import replacing, storage_faults, write_atomic
from m4v.weights.catalogue import CatalogueEntry
from m4v.weights.check import Progress, check, digests, require
from m4v.weights.components import CONFIG, Component, components, rest
from m4v.weights.pyramidflow import checkpoint_config
from m4v.weights.record import RECORD, SourceRecord, WeightsRecord
from m4v.weights.source import SourceFile, source_files
from m4v.weights.tensors import TensorFile, TensorInfo, write_tensors

_CHUNK_BYTES = 4 << 20


def convert(
    found: CatalogueEntry,
    folder: Path,
    output: Path,
    *,
    published: bool = True,
    progress: Progress | None = None,
) -> WeightsRecord:
    """Check the files of `found` in `folder` and write the artifact's files into `output`.

    `published`: see WeightsConfig. Raises InputError when a file is missing, DataIntegrityError when one is
    damaged, differs from the catalogue, holds code, or does not fit the model it is for.
    """
    files = source_files(found, folder, published)
    report = check(found, folder, published=published)
    require(found, report, files)
    files = [file for file in files if not file.is_absent]
    run = _Run(output, files, published, progress)
    parts = components(found, files)
    for part in parts:
        _convert_component(part, run)
    for file in rest(files, parts):
        run.copy(file, file.place)
    record = WeightsRecord(
        entry=found.name, format=found.format, hub=found.hub, licence=found.licence, published=published,
        source=tuple(sorted(run.read.values(), key=lambda r: r.path)),
        tensors=sum(part.tensors for part in report.components),
        parameters=sum(part.parameters for part in report.components),
    )  # fmt: skip
    write_atomic(output / RECORD, canonical_json(record.canonical()))
    return record


class _Run:
    """One conversion: where to, and what has been read so far."""

    def __init__(self, output: Path, files: list[SourceFile], published: bool, progress: Progress | None) -> None:
        self.output, self._published, self._progress = output, published, progress
        self.read: dict[str, SourceRecord] = {}
        self._total = sum(file.path.stat().st_size for file in files)

    def copy(self, file: SourceFile, place: str) -> None:
        """The bytes as they are. A copy, not a link: an artifact must not change with somebody's folder."""
        sha, size = hashlib.sha256(), 0
        with (
            storage_faults(place),
            file.path.open("rb") as stream,
            replacing(self.output / place) as temporary,
            temporary.open("wb") as out,
        ):
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
                out.write(chunk)
                size += len(chunk)
                self._say(size, file.place)
        self._record(file, size, sha.hexdigest())

    def hash(self, file: SourceFile) -> None:
        """Record a file that is read in another way."""
        self._record(file, file.path.stat().st_size, digest_file(file.path))

    def write_model(self, part: Component, infos: dict[str, TensorInfo], chunks: dict[str, Iterator[bytes]]) -> None:
        target = self.output / part.output / part.merged_name
        with storage_faults(str(target)), replacing(target) as temporary:
            write_tensors(temporary, infos, chunks)

    def _record(self, file: SourceFile, size: int, sha256: str) -> None:
        stated = file.catalogued
        if self._published and (
            (stated.sha256 is not None and stated.sha256 != sha256)
            or (stated.md5 is not None and stated.md5 != digests(file.path, md5=True)[1])
        ):
            raise DataIntegrityError("bytes differ from the published digest", value=file.place, where=str(file.path))
        self.read[file.place] = SourceRecord(path=file.place, size_bytes=size, sha256=sha256)
        self._say(0, file.place)

    def _say(self, more: int, note: str) -> None:
        if self._progress is not None:
            self._progress(sum(r.size_bytes for r in self.read.values()) + more, self._total, note)


def _convert_component(part: Component, run: _Run) -> None:
    prefix = f"{part.output}/" if part.output else ""
    if part.config_file is not None:
        if part.kind == "pyramidflow_dit":
            run.hash(part.config_file)
            config = checkpoint_config(part.config(), str(part.config_file.path))
            text = json.dumps(config.canonical(), indent=1, sort_keys=True)
            write_atomic(run.output / prefix / CONFIG, text.encode())
        else:
            run.copy(part.config_file, prefix + CONFIG)
    elif part.wan_original:
        text = json.dumps(part.config(), indent=1, sort_keys=True)
        write_atomic(run.output / prefix / CONFIG, text.encode())
    if part.merged and not _is_final(part):
        _merge(part, run)
        return
    for file in part.weights:
        run.copy(file, prefix + (part.merged_name if part.merged else Path(file.place).name))
    if part.index_file is not None:
        run.copy(part.index_file, prefix + Path(part.index_file.place).name)


def _is_final(part: Component) -> bool:
    """One safetensors file that already has our keys and types: its bytes are the result."""
    if len(part.weights) != 1 or not part.weights[0].place.endswith(".safetensors"):
        return False
    file = part.files[0]
    return all(key == name for key, (_, name) in part.tensors().items()) and all(
        _target_dtype(part, info) == info.dtype for info in file.tensors.values()
    ) and len(part.tensors()) == len(file.tensors)  # fmt: skip


def _target_dtype(part: Component, info: TensorInfo) -> str:
    # Checkpoints hold fp32 masters (m4v.checkpoint), and a transformer is imported to be trained on.
    return "F32" if part.kind == "pyramidflow_dit" and info.dtype in ("F16", "BF16", "F64") else info.dtype


def _merge(part: Component, run: _Run) -> None:
    held = part.tensors()
    infos = {
        key: TensorInfo(_target_dtype(part, file.tensors[name]), file.tensors[name].shape)
        for key, (file, name) in held.items()
    }
    chunks = {key: _recoded(file, name, infos[key].dtype) for key, (file, name) in held.items()}
    run.write_model(part, infos, chunks)
    for source in (*part.weights, part.index_file):
        if source is not None:
            run.hash(source)


def _recoded(file: TensorFile, name: str, dtype: str) -> Iterator[bytes]:
    """Bytes of a tensor, as float32 where that is asked for. Generators start only when they are read."""
    if file.tensors[name].dtype == dtype:
        yield from file.chunks(name)
        return
    import torch

    source = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[file.tensors[name].dtype]
    for chunk in file.chunks(name):
        values = torch.frombuffer(bytearray(chunk), dtype=source)
        yield values.float().numpy().tobytes()
