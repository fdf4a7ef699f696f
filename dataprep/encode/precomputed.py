"""Latents that other programs saved, row by row: PyramidFlow's JSON lines with `.pt` files, FastVideo's Parquet.

Files are read as tensors alone; code in them is never run. What a row claims is checked before it is believed.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dataprep.import_config import ImportConfig
from dataprep.quarantine import ItemError, QuarantineRow
from dataprep.sources.listing import Count, Rejected
from dataprep.sources.pyramidflow import annotation_rows
from dataprep.sources.rows import find_tables
from dataprep.sources.spans import Annotation
from dataprep.sources.text import clean_caption, path_problem, printable
from m4v.codec.shape import CHANNELS, TEMPORAL
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from m4v.text.interface import TextFeatures
from m4v.text.saved import read_saved_features
from m4v.weights.pickles import load_pickle

STEP = "import"
MAX_FILE_BYTES = 2 << 30
PATCH = 8  # the pyramid halves a latent twice, and its patches are 2 x 2
_START = re.compile(r"-latent-\d+-(\d+)\.pt$")
_DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64}


@dataclass
class Precomputed:
    """One latent. `latent()` and each of `texts` raise ItemError; `frames` are the source frames it was made of, None
    where only their start is known."""

    path: str
    place: str
    latent: Callable[[], Tensor]
    captions: list[str]
    texts: list[Callable[[], TextFeatures]] = field(default_factory=list)
    start: int = 0
    frames: tuple[int, ...] | None = None
    fps: float | None = None

    def add(self, caption: str, text: Callable[[], TextFeatures] | None) -> None:
        """Another caption of the same latent; one that is there already is left out."""
        if caption not in self.captions:
            self.captions.append(caption)
            if text is not None:
                self.texts.append(text)


Row = Precomputed | QuarantineRow


def rows_of(config: ImportConfig, location: Storage) -> Iterator[Row]:
    """Raises InputError when no table is there."""
    tables = find_tables(location, config.patterns, "table of latents")
    if config.layout == "fastvideo":
        for table in tables:
            yield from _parquet_rows(table, location, config)
        return
    found: dict[str, Precomputed] = {}
    for table in tables:
        for item in annotation_rows(table, location, ""):
            if isinstance(item, Rejected):
                yield QuarantineRow(config.name, "", item.path, item.reason, item.detail, STEP)
            elif isinstance(item, Annotation):
                yield from _line(item, found, location, config)
            else:
                assert isinstance(item, Count)
    yield from found.values()


def _line(item: Annotation, found: dict[str, Precomputed], location: Storage, config: ImportConfig) -> Iterator[Row]:
    def rejected(reason: str, detail: str) -> QuarantineRow:
        return QuarantineRow(config.name, item.path, item.path, reason, f"{item.place}: {detail}", STEP)

    latent, text = (_inside(str(item.extra[k]), location) if k in item.extra else None for k in ("latent", "text_fea"))
    if item.media != "video" or latent is None:
        yield rejected("missing_latent", "the line names no latent; images and videos are encoded by `m4v run`")
        return
    if problem := next((p for n in (latent, text) if n is not None and (p := path_problem(n))), None):
        yield rejected("unsafe_name", problem)
        return
    clean = clean_caption(item.texts[0] if item.texts else "", config.max_caption_chars)
    if clean.problem is not None:
        yield rejected(clean.problem, "")
        return
    if config.texts == "reuse" and text is None:
        yield rejected("missing_text", "the line names no text_fea")
        return
    saved = _text_reader(location, text) if config.texts == "reuse" and text is not None else None
    if latent in found:
        found[latent].add(clean.text, saved)
        return
    listed = item.extra.get("frames")
    frames = tuple(listed) if isinstance(listed, list) else None
    if frames is None and item.first is not None and item.last is not None:
        frames = tuple(range(item.first, item.last + 1))
    named = _START.search(latent)
    start = frames[0] if frames else int(named[1]) if named else 0
    found[latent] = Precomputed(item.path, str(item.place), _latent_reader(location, latent), [], [], start, frames)
    found[latent].add(clean.text, saved)


def _inside(path: str, location: Storage) -> str:
    """Relative to the collection; an absolute path below it is cut."""
    if location.is_local and path.startswith("/") and Path(path).is_relative_to(location.local_root):
        path = Path(path).relative_to(location.local_root).as_posix()
    return posixpath.normpath(path) if not path.startswith("/") else path


@contextlib.contextmanager
def _local(location: Storage, path: str) -> Iterator[Path]:
    """Raises ItemError when there is no such file, or one too large to be of a clip."""
    with tempfile.TemporaryDirectory() as scratch:
        if location.is_local:
            local = location.local_root / path
        else:
            try:
                local = location.fetch(path, Path(scratch) / "file")
            except InputError:
                raise ItemError("missing_file", path) from None
        if not local.is_file():
            raise ItemError("missing_file", path)
        if local.stat().st_size > MAX_FILE_BYTES:
            raise ItemError("too_large", f"{path} has {local.stat().st_size} bytes")
        yield local


def _latent_reader(location: Storage, path: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with _local(location, path) as local:
            try:
                found = load_pickle(local)
            except DataIntegrityError as error:
                raise ItemError("bad_latent", f"{path}: {error.what} {error.value or ''}") from None
            return checked_latent(found, path).clone()

    return read


def _text_reader(location: Storage, path: str) -> Callable[[], TextFeatures]:
    def read() -> TextFeatures:
        with _local(location, path) as local:
            try:
                found = read_saved_features(local)
            except DataIntegrityError as error:
                raise ItemError("bad_text", f"{path}: {error.what} {error.value or ''}") from None
            if not all(bool(torch.isfinite(t).all()) for t in (found.embedding, found.pooled)):
                raise ItemError("bad_text", f"{path}: features that are not finite")
            return TextFeatures(found.embedding.clone(), found.mask.clone(), found.pooled.clone())

    return read


def checked_latent(found: object, where: str) -> Tensor:
    """float32 (16, t, h, w) of what a file held; raises ItemError `bad_latent`."""
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.layout != torch.strided:
        raise ItemError("bad_latent", f"{where}: {type(found).__name__}, not a tensor of floats")
    latent = found[0] if found.ndim == 5 and len(found) == 1 else found
    shape = tuple(found.shape)
    if latent.ndim != 4 or latent.shape[0] != CHANNELS or 0 in latent.shape:
        raise ItemError("bad_latent", f"{where}: shape {shape}, not (1, {CHANNELS}, t, h, w)")
    if latent.shape[2] % PATCH or latent.shape[3] % PATCH:
        raise ItemError("bad_latent", f"{where}: shape {shape}: the pyramid needs multiples of {PATCH} in h and w")
    latent = latent.to(torch.float32)
    if not bool(torch.isfinite(latent).all()):
        raise ItemError("bad_latent", f"{where}: numbers that are not finite")
    return latent


_COLUMNS = ("vae_latent_bytes", "vae_latent_shape", "vae_latent_dtype", "caption")


def _parquet_rows(table: str, location: Storage, config: ImportConfig) -> Iterator[Row]:
    with location.open(table) as stream:
        try:
            file = pq.ParquetFile(stream, pre_buffer=False)
            if missing := sorted(set(_COLUMNS) - set(file.schema_arrow.names)):
                raise InputError("table has no such column", value=missing[0], where=f"{location.uri}/{table}")
            names = [n for n in (*_COLUMNS, "id", "file_name", "num_frames", "fps") if n in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(batch_size=8, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield _parquet_row(row, f"{table} row {number}", config)
        except pa.ArrowException as error:
            yield QuarantineRow(config.name, "", table, "bad_table", str(error).splitlines()[0], STEP)


def _parquet_row(row: dict[str, object], place: str, config: ImportConfig) -> Row:
    name = row.get("file_name") or row.get("id")
    path = printable(str(name)) if name else place
    clean = clean_caption(str(row.get("caption") or ""), config.max_caption_chars)
    if clean.problem is not None:
        return QuarantineRow(config.name, path, path, clean.problem, place, STEP)
    fps, frames = row.get("fps"), row.get("num_frames")
    rate = float(fps) if isinstance(fps, int | float) and 0 < fps <= 240 else None
    return Precomputed(path, place, lambda: _parquet_latent(row, frames, place), [clean.text], fps=rate)


def _parquet_latent(row: dict[str, object], frames: object, place: str) -> Tensor:
    data, shape, kind = row["vae_latent_bytes"], row["vae_latent_shape"], str(row["vae_latent_dtype"])
    dtype = _DTYPES.get(kind.removeprefix("torch."))
    if dtype is None or not isinstance(data, bytes) or not isinstance(shape, Sequence) or isinstance(shape, str):
        raise ItemError("bad_latent", f"{place}: bytes of type {kind!r} and shape {shape!r}")
    sides = [int(side) for side in shape]
    if not sides or min(sides) < 1 or int(np.prod(sides, dtype=object)) * np.dtype(dtype).itemsize != len(data):
        raise ItemError("bad_latent", f"{place}: {len(data)} bytes are not {kind} {sides}")
    latent = checked_latent(torch.from_numpy(np.frombuffer(data, dtype=dtype).reshape(sides).copy()), place)
    if isinstance(frames, int) and frames > 0 and frames != (latent.shape[1] - 1) * TEMPORAL + 1:
        raise ItemError(
            "other_vae", f"{place}: {latent.shape[1]} latents of {frames} frames; the codec makes {TEMPORAL} a latent"
        )
    return latent
