"""Configuration of source collections: one model a kind of collection, told apart by `kind`.

Where a collection lies is not here: a location is a fact of one machine and never part of an identity.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataprep.sources.config_base import Adapter
from dataprep.sources.config_tables import (
    GeneratedConfig,
    LaionConfig,
    OpenSoraPlanConfig,
    PyramidFlowConfig,
    WebDatasetConfig,
    WebVidConfig,
)
from m4v.core.config import FrozenModel
from m4v.core.palette import COLOURS

Shape = Literal["circle", "square", "triangle", "star", "diamond", "hexagon"]
Motion = Literal["right", "left", "up", "down", "circles", "grows", "shrinks", "still"]
Camera = Literal["pan-right", "pan-left", "zoom-in"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "diamond", "hexagon")
MOTIONS: tuple[Motion, ...] = ("right", "left", "up", "down", "circles", "grows", "shrinks", "still")


class _Tree(Adapter):
    """Files below a directory or prefix. Globs are relative (`**` crosses folders); `exclude` wins.

    `require_captions`: a file without a caption is rejected; otherwise listed without one. `limit` takes
    the first files in path order.
    """

    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    require_captions: bool = True
    limit: int | None = Field(None, ge=1)


class FolderConfig(_Tree):
    """Videos with captions beside them (see `dataprep.sources.captions` for the forms understood).

    `frames` restricts every file to [first, last], both inclusive, counted in presentation order.
    """

    kind: Literal["folder"] = "folder"
    frames: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.frames is not None and not 0 <= self.frames[0] <= self.frames[1]:
            raise ValueError(f"frames {list(self.frames)} are not [first, last] with 0 <= first <= last")
        return self


class ImagesConfig(_Tree):
    """Still images with captions beside them, for the text-to-image stage."""

    kind: Literal["images"] = "images"


class OpenVidConfig(Adapter):
    """OpenVid-1M: its CSV files, with the folder that its archives were unpacked into, or with the archives.

    Score bounds choose rows by the CSV's own columns before any file is looked at. `identity` says what a
    file's digest is made of: `full` bytes, or `sampled` (size and 16 spread blocks of 64 KiB; in an archive:
    size, CRC-32 and name), which keeps a terabyte collection listable.

    `archives` are zip files, as names, globs of one folder, or ranges like `OpenVid_part{0..185}.zip`; of a zip in
    parts (`OpenVid_part73_partaa`, …) give the name of the whole. Only their directories are read when listing.
    `hd_list` (OpenVidHD.json) keeps the rows whose video it names.
    """

    kind: Literal["openvid"] = "openvid"
    csv: tuple[str, ...] = ("data/train/OpenVid-1M.csv",)
    videos: str = "video"
    archives: tuple[str, ...] = ()
    hd_list: str | None = None
    min_aesthetic: float | None = None
    min_motion: float | None = None
    max_motion: float | None = None
    min_temporal_consistency: float | None = None
    camera_motion: tuple[str, ...] | None = None
    identity: Literal["full", "sampled"] = "sampled"
    limit: int | None = Field(None, ge=1)


class SyntheticConfig(Adapter):
    """Procedurally drawn clips with exact captions. `count` clips, then `stills` single images.

    `size` is (height, width), both even. Words are drawn evenly from the lists given; a colour never
    meets itself as background. `cameras` adds clips in which the camera moves over a still pattern.
    """

    kind: Literal["synthetic"] = "synthetic"
    licence: str = "CC0-1.0"
    count: int = Field(64, ge=0)
    stills: int = Field(0, ge=0)
    frames: int = Field(33, ge=2)
    fps: float = Field(24, gt=0)
    size: tuple[int, int] = (64, 64)
    seed: int = Field(0, ge=0)
    shapes: tuple[Shape, ...] = ("circle", "square", "triangle", "star")
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")
    backgrounds: tuple[str, ...] = ("white", "black", "blue", "green")
    motions: tuple[Motion, ...] = MOTIONS
    cameras: tuple[Camera, ...] = ()
    captions: int = Field(1, ge=1, le=3)
    crf: int = Field(12, ge=0, le=51)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.count + self.stills == 0:
            raise ValueError("count and stills are both 0: nothing to draw")
        if any(side < 16 or side % 2 for side in self.size):
            raise ValueError(f"size {list(self.size)} needs even sides of at least 16")
        for word in (*self.colours, *self.backgrounds):
            if word not in COLOURS:
                raise ValueError(f"colour {word!r} is not one of {', '.join(COLOURS)}")
        if not self.shapes or not any(c != b for c in self.colours for b in self.backgrounds):
            raise ValueError("needs a shape, and a colour that differs from a background")
        if self.count and not (self.motions or self.cameras):
            raise ValueError("needs a motion or a camera word")
        return self


AdapterConfig = Annotated[
    FolderConfig
    | ImagesConfig
    | OpenVidConfig
    | WebVidConfig
    | OpenSoraPlanConfig
    | PyramidFlowConfig
    | GeneratedConfig
    | LaionConfig
    | WebDatasetConfig
    | SyntheticConfig,
    Field(discriminator="kind"),
]


class SourceConfig(FrozenModel):
    """Config of the `source` stage. `name` is the collection's name in the recipe and enters every clip id."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    adapter: AdapterConfig


__all__ = [
    "AdapterConfig",
    "FolderConfig",
    "GeneratedConfig",
    "ImagesConfig",
    "LaionConfig",
    "OpenSoraPlanConfig",
    "OpenVidConfig",
    "PyramidFlowConfig",
    "SourceConfig",
    "SyntheticConfig",
    "WebDatasetConfig",
    "WebVidConfig",
]
