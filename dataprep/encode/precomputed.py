"""Latents that other programs saved, row by row: PyramidFlow's JSON lines with `.pt` files, FastVideo's Parquet and
folders.

Files are read as tensors alone; code in them is never run. What a row claims is checked before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dataprep.encode.latent_folders import folder_rows
from dataprep.encode.saved_latents import STEP, Precomputed, Row, checked_latent, inside, latent_reader, text_reader
from dataprep.import_config import ImportConfig
from dataprep.quarantine import ItemError, QuarantineRow
from dataprep.sources.listing import Count, Rejected
from dataprep.sources.pyramidflow import annotation_rows
from dataprep.sources.rows import find_tables
from dataprep.sources.spans import Annotation
from dataprep.sources.text import clean_caption, path_problem, printable
from m4v.codec.config import CodecConfig
from m4v.codec.shape import pixel_frames
from m4v.core.errors import InputError
from m4v.core.storage import Storage

_START = re.compile(r"-latent-\d+-(\d+)\.pt$")
_DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64}


def rows_of(config: ImportConfig, location: Storage) -> Iterator[Row]:
    """Raises InputError when no table is there."""
    tables = find_tables(location, config.patterns, "table of latents")
    if config.layout != "pyramidflow":
        of_table = _parquet_rows if config.layout == "fastvideo" else folder_rows
        for table in tables:
            yield from of_table(table, location, config)
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

    latent, text = (inside(str(item.extra[k]), location) if k in item.extra else None for k in ("latent", "text_fea"))
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
    saved = text_reader(location, text) if config.texts == "reuse" and text is not None else None
    if latent in found:
        found[latent].add(clean.text, saved)
        return
    listed = item.extra.get("frames")
    frames = tuple(listed) if isinstance(listed, list) else None
    if frames is None and item.first is not None and item.last is not None:
        frames = tuple(range(item.first, item.last + 1))
    named = _START.search(latent)
    start = frames[0] if frames else int(named[1]) if named else 0
    found[latent] = Precomputed(
        item.path, str(item.place), latent_reader(location, latent, config.codec), [], [], start, frames
    )
    found[latent].add(clean.text, saved)


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
    return Precomputed(path, place, lambda: _parquet_latent(row, frames, place, config.codec), [clean.text], fps=rate)


def _parquet_latent(row: dict[str, object], frames: object, place: str, codec: CodecConfig) -> Tensor:
    data, shape, kind = row["vae_latent_bytes"], row["vae_latent_shape"], str(row["vae_latent_dtype"])
    dtype = _DTYPES.get(kind.removeprefix("torch."))
    if dtype is None or not isinstance(data, bytes) or not isinstance(shape, Sequence) or isinstance(shape, str):
        raise ItemError("bad_latent", f"{place}: bytes of type {kind!r} and shape {shape!r}")
    sides = [int(side) for side in shape]
    if not sides or min(sides) < 1 or int(np.prod(sides, dtype=object)) * np.dtype(dtype).itemsize != len(data):
        raise ItemError("bad_latent", f"{place}: {len(data)} bytes are not {kind} {sides}")
    latent = checked_latent(torch.from_numpy(np.frombuffer(data, dtype=dtype).reshape(sides).copy()), place, codec)
    if isinstance(frames, int) and frames > 0 and frames != pixel_frames(latent.shape[1], codec.time_stride):
        raise ItemError(
            "other_vae",
            f"{place}: {latent.shape[1]} latents of {frames} frames; the codec makes {codec.time_stride} a latent",
        )
    return latent
