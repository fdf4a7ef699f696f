"""Configs of the published collections: WebVid, Open-Sora-Plan, generated clips, LAION, WebDataset, Pyramid-Flow."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dataprep.sources.config_base import Adapter, Identity, Tables
from m4v.core.config import FrozenModel


class WebVidConfig(Tables):
    """WebVid-2M or -10M: its CSV files (columns are found by name) and a tree `FOLDER/page_dir/videoid.mp4`.

    `csv` are names or globs of one folder. `videos`: folders that hold page directories, looked through in
    this order; empty: `videos`, then every other folder of the collection by name, then the collection itself.
    """

    kind: Literal["webvid"] = "webvid"
    csv: tuple[str, ...] = ("results_*.csv", "data/train/partitions/*.csv", "data/val/partitions/*.csv")
    videos: tuple[str, ...] = ()
    terms: str = "WebVid: research use only; its links were withdrawn in February 2024 at the owner's request"


class AnnotatedSet(FrozenModel):
    """One annotation file and the folder that its paths are relative to, both relative to the collection."""

    annotation: str = Field(min_length=1)
    media: str = ""


class OpenSoraPlanConfig(Tables):
    """Open-Sora-Plan v1.1 to v1.3: JSON arrays of annotations, read as streams.

    `sets` name annotation files and media folders; without them the lines `media,annotation` of `launch` do.
    """

    kind: Literal["opensora_plan"] = "opensora_plan"
    sets: tuple[AnnotatedSet, ...] = ()
    launch: str = "merge_data.txt"
    min_aesthetic: float | None = None
    min_technical: float | None = None
    min_motion: float | None = None
    max_motion: float | None = None


class PyramidFlowConfig(Tables):
    """Pyramid-Flow's annotation files: JSON lines with `video` or `image`, `text` and perhaps `frames`."""

    kind: Literal["pyramidflow"] = "pyramidflow"
    annotations: tuple[str, ...] = ("*.jsonl", "annotation/*.jsonl")
    media: str = ""


class GeneratedConfig(Adapter):
    """Clips and stills that a model made, in any of the layouts that `dataprep.sources.captions` reads.

    Model, version, seed, steps, guidance, negative prompt and prompt id of a row are kept; `model` and
    `model_version` stand where a row names none.
    """

    kind: Literal["generated"] = "generated"
    model: str = ""
    model_version: str = ""
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    require_captions: bool = True
    limit: int | None = Field(None, ge=1)


class LaionConfig(Tables):
    """LAION-aesthetics: its Parquet files, or the folders, shards and Parquet files that img2dataset wrote of them.

    Rows of the published tables have a URL and no file name: the image is expected at
    `dataprep.sources.laion.image_path(url)` below `images`, where the downloader puts it.
    """

    kind: Literal["laion"] = "laion"
    tables: tuple[str, ...] = ("*.parquet",)
    images: str = "images"
    min_aesthetic: float | None = None
    min_similarity: float | None = None
    max_watermark: float | None = None
    max_unsafe: float | None = None
    min_side: int = Field(0, ge=0)


class WebDatasetConfig(Adapter):
    """Existing WebDataset shards (plain tar): media with `.txt` or `.json` of the same key, read in place."""

    kind: Literal["webdataset"] = "webdataset"
    shards: tuple[str, ...] = ("**/*.tar",)
    media: Literal["video", "image", "both"] = "both"
    identity: Identity = "full"
    require_captions: bool = True
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.shards:
            raise ValueError("shards is empty: name the tar files or a glob")
        return self
