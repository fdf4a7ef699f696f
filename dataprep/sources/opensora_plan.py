"""Adapter `opensora_plan`: the annotation arrays of Open-Sora-Plan v1.1, v1.2 and v1.3.

v1.1 `path, frame_idx "start:end", cap` (text); v1.2 `cap` (list), `resolution, fps, duration`; v1.3 also
`num_frames, aesthetic` or `aes`, `cut [start, end], crop [x0, x1, y0, y1], tech, motion`. A video row without
`frame_idx` or `cut` means the whole file. Both ranges are half-open and in frames. A clip is curated and encoded
inside its `crop`, which is in pixels of `resolution`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from dataprep.sources.adapter import ScanContext
from dataprep.sources.captions import frame_range, positive_number
from dataprep.sources.config_tables import AnnotatedSet, OpenSoraPlanConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.entries import CROP
from dataprep.sources.json_stream import read_json_array
from dataprep.sources.keys import SpanGroups
from dataprep.sources.listing import Count, Entry, Rejected
from dataprep.sources.rows import MediaFiles, Place, limited, media_of, place_of, texts_of, tree_digest
from dataprep.sources.spans import Annotation, grouped
from dataprep.sources.tables import Record
from dataprep.sources.text import decode, path_problem, printable
from m4v.core.errors import InputError
from m4v.core.storage import Storage

_SCORES = {"aesthetic": ("aesthetic", "aes"), "tech": ("tech",), "motion": ("motion",)}


class OpenSoraPlanAdapter:
    inside = False

    def entries(self, config: OpenSoraPlanConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        sets = annotated_sets(config, location)
        files = MediaFiles(location, context.digests, config.identity)
        with SpanGroups() as groups:
            rows = (entry for one in sets for entry in _rows(one, location, config))
            yield from limited(grouped(rows, groups, config, files), config.limit, context)

    def probe(self, config: OpenSoraPlanConfig, location: Storage | None, digests: DigestCache) -> str:
        return tree_digest(location, config.kind)


def annotated_sets(config: OpenSoraPlanConfig, location: Storage) -> tuple[AnnotatedSet, ...]:
    """The sets of the config, else of the launch file. Raises InputError when a file is not there or no JSON."""
    sets = config.sets or _launched(config.launch, location)
    for one in sets:
        if one.annotation.endswith((".pkl", ".pickle")):
            raise InputError(
                "a pickle file can run code and is never opened", value=one.annotation, where=location.uri,
                next_step="convert it to a JSON array on a machine where you trust it",
            )  # fmt: skip
        if not location.exists(one.annotation):
            raise InputError("annotation file does not exist", value=one.annotation, where=location.uri)
    return sets


def _launched(name: str, location: Storage) -> tuple[AnnotatedSet, ...]:
    if not location.exists(name):
        raise InputError(
            "no launch file and no sets", value=name, where=location.uri,
            next_step="add sets: [{annotation: FILE.json, media: FOLDER}] to the source's adapter",
        )  # fmt: skip
    sets = []
    for number, line in enumerate(decode(location.read_bytes(name)).splitlines(), start=1):
        parts = [part.strip() for part in line.split(",")]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if len(parts) not in (2, 3):
            raise InputError("launch line is not `media,annotation`", value=line, where=f"{name} line {number}")
        media, annotation = (_inside(part, location, f"{name} line {number}") for part in (parts[0], parts[-1]))
        sets.append(AnnotatedSet(annotation=annotation, media=media))
    return tuple(sets)


def _inside(path: str, location: Storage, where: str) -> str:
    """A path of a launch file relative to the collection; launch files often carry absolute ones."""
    if location.is_local and path.startswith("/") and Path(path).is_relative_to(location.local_root):
        path = Path(path).relative_to(location.local_root).as_posix()
    path = posixpath.normpath(path.rstrip("/") or ".")
    if path == ".":
        return ""
    if problem := path_problem(path):
        raise InputError(
            f"path of the launch file cannot be used ({problem})", value=path, where=where,
            next_step="write it relative to the source's location, or give `sets` in the adapter",
        )  # fmt: skip
    return path


def _rows(one: AnnotatedSet, location: Storage, config: OpenSoraPlanConfig) -> Iterator[Annotation | Entry]:
    number = 0
    with location.open(one.annotation) as stream:
        for item in read_json_array(stream, one.annotation):
            number += 1
            if isinstance(item, Rejected):
                yield item
            else:
                yield _annotation(item, place_of(one.annotation, item), one.media, config)
    yield Count("rows", number)


def _annotation(item: Record, place: Place, folder: str, config: OpenSoraPlanConfig) -> Annotation | Entry:
    fields = item.fields
    name = fields.get("path")
    if not isinstance(name, str):
        return Rejected(place.table, place.row, "bad_row", f"{place}: names no file")
    path = posixpath.join(folder, name.removeprefix("./"))
    if problem := path_problem(path):
        return Rejected(printable(name), place.row, "unsafe_name", f"{place}: {problem}")
    media = media_of(path)
    if media is None:
        return Rejected(path, place.row, "bad_row", f"{place}: neither a video nor an image by its suffix")
    try:
        first, last = _frames(fields) if media == "video" else (None, None)
    except ValueError as error:
        return Rejected(path, place.row, "bad_range", f"{place}: {error}")
    claims, extra = _claims(fields), _extra(fields)
    try:
        extra |= _crop(fields, claims)
    except ValueError as error:
        return Rejected(path, place.row, "bad_crop", f"{place}: {error}")
    if not _wanted(extra, config):
        return Count("filtered_by_scores")
    return Annotation(path, media, first, last, texts_of(fields.get("cap")), claims, extra, place)


def _frames(fields: Mapping[str, object]) -> tuple[int | None, int | None]:
    cut = fields.get("cut")
    if cut in (None, "", []):
        return frame_range({"frame_idx": fields.get("frame_idx")})
    if not isinstance(cut, list) or len(cut) != 2:
        raise ValueError(f"cut {str(cut)[:60]} is not [start, end]")
    return frame_range({"frame_idx": ":".join(_index(edge) for edge in cut)})


def _index(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _claims(fields: Mapping[str, object]) -> dict[str, float]:
    resolution = fields.get("resolution")
    sides = resolution if isinstance(resolution, dict) else {}
    given = {"width": sides.get("width"), "height": sides.get("height"), "fps": fields.get("fps"),
             "duration_s": fields.get("duration")}  # fmt: skip
    return {name: number for name, value in given.items() if (number := positive_number(value)) is not None}


def _extra(fields: Mapping[str, object]) -> dict[str, object]:
    """Scores and the claimed number of frames; nonsense is dropped."""
    extra: dict[str, object] = {}
    for name, keys in _SCORES.items():
        value = next((fields[k] for k in keys if fields.get(k) is not None), None)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:
            extra[name] = float(value)
    frames = fields.get("num_frames")
    if isinstance(frames, int) and frames > 0:
        extra["frames_claimed"] = frames
    return extra


def _crop(fields: Mapping[str, object], claims: Mapping[str, float]) -> dict[str, object]:
    """The crop as (x0, y0, x1, y1), nothing where the row has none; raises ValueError for one that is no rectangle
    inside the claimed picture: used without it, a row would show what its collection cut away."""
    crop = fields.get("crop")
    if crop in (None, "", []):
        return {}
    if not isinstance(crop, list) or len(crop) != 4 or any(_index(v).lstrip("-").isdigit() is False for v in crop):
        raise ValueError(f"crop {str(crop)[:60]} is not [x0, x1, y0, y1] in pixels")
    x0, x1, y0, y1 = (int(_index(v)) for v in crop)
    width, height = claims.get("width", x1), claims.get("height", y1)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"crop {crop} (x0, x1, y0, y1) is not inside a picture of {width:g}x{height:g}")
    whole = "width" in claims and "height" in claims and (x0, y0, x1, y1) == (0, 0, width, height)
    return {} if whole else {CROP: [x0, y0, x1, y1]}


def _wanted(extra: Mapping[str, object], config: OpenSoraPlanConfig) -> bool:
    """Within all bounds; a row without the score of a bound is not."""
    bounds = (
        (config.min_aesthetic, None, "aesthetic"),
        (config.min_technical, None, "tech"),
        (config.min_motion, config.max_motion, "motion"),
    )
    for low, high, name in bounds:
        value = extra.get(name)
        if (low is not None or high is not None) and not isinstance(value, float):
            return False
        if isinstance(value, float) and ((low is not None and value < low) or (high is not None and value > high)):
            return False
    return True
