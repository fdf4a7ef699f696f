"""Sidecars of the fetched corpus: captions with frame ranges, licences and credits beside the media.

Captions come from `dataprep/data/captions.tsv` (written by hand for this project); files are written in a
fixed order with fixed bytes, so a listing of the corpus is the same on every machine.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from m4v.core.asset_catalog import PACKAGES, AssetFile
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import write_atomic

CORPUS = "corpus/"
CAPTION_TABLE = "captions.csv"
CREDITS = "CREDITS.txt"
_PREFIX = {"wheel": "pypi:{}=={}", "sdist": "pypi:{}=={}", "npm": "npm:{}@{}", "deb": "deb:{}"}


class CorpusCaption(NamedTuple):
    """One row of captions.tsv. Frames are inclusive, None for a photo; `note` says what a filter should do."""

    source: str
    file: str
    first_frame: int | None
    last_frame: int | None
    kind: str
    caption: str
    note: str


def read_captions() -> list[CorpusCaption]:
    """Rows of the project's caption file; raises DataIntegrityError naming a row that does not parse."""
    text = (resources.files("dataprep") / "data" / "captions.tsv").read_text(encoding="utf-8")
    rows = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE), start=2):
        try:
            first, last = (int(v) if v else None for v in (row["first_frame"], row["last_frame"]))
            caption, note = row["caption"], ""
            if row["kind"] == "video-negative":  # "what is seen (what a filter should do)"
                caption, _, note = caption.rstrip(")").partition(" (")
            rows.append(CorpusCaption(row["source"], row["file"], first, last, row["kind"], caption, note))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataIntegrityError(
                f"caption row does not parse: {error}", where=f"captions.tsv row {number}"
            ) from None
    return rows


def package_source(package: str) -> str:
    """Name by which captions.tsv calls a package, e.g. `pypi:gradio==6.31.0`."""
    pin = PACKAGES[package]
    return _PREFIX[pin.manager].format(pin.requirement, pin.version)


def captions_of(file: AssetFile, rows: Iterable[CorpusCaption]) -> list[CorpusCaption]:
    source, name = package_source(file.package), PurePosixPath(file.path).name
    return [r for r in rows if r.source == source and r.file.removesuffix(".gz") == name]


def sidecars(files: Iterable[AssetFile]) -> dict[str, bytes]:
    """Relative path -> bytes of every sidecar that the corpus files among `files` need."""
    rows = read_captions()
    folders: dict[str, list[AssetFile]] = {}
    for file in files:
        if file.path.startswith(CORPUS):
            folders.setdefault(PurePosixPath(file.path).parent.as_posix(), []).append(file)
    made: dict[str, bytes] = {}
    for folder, members in folders.items():
        members.sort(key=lambda f: f.path)
        videos = [(f, c) for f in members for c in captions_of(f, rows) if c.kind != "photo"]
        if videos:
            made[f"{folder}/{CAPTION_TABLE}"] = _caption_table(videos)
        for file in members:
            for caption in captions_of(file, rows):
                if caption.kind == "photo":
                    made[PurePosixPath(file.path).with_suffix(".json").as_posix()] = _photo_sidecar(file, caption)
        made[f"{folder}/{CREDITS}"] = _credits(members)
    return made


def write_sidecars(root: Path, files: Iterable[AssetFile]) -> None:
    """Write the sidecars that are missing or differ."""
    for path, data in sidecars(files).items():
        target = root / path
        if not target.is_file() or target.read_bytes() != data:
            write_atomic(target, data)


def _caption_table(rows: list[tuple[AssetFile, CorpusCaption]]) -> bytes:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["file", "first_frame", "last_frame", "caption", "licence", "note"])
    for file, row in rows:
        name = PurePosixPath(file.path).name
        table.writerow([name, row.first_frame, row.last_frame, row.caption, file.licence, row.note])
    return out.getvalue().encode()


def _photo_sidecar(file: AssetFile, row: CorpusCaption) -> bytes:
    value = {"caption": row.caption, "credit": file.credit, "licence": file.licence}
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _credits(files: list[AssetFile]) -> bytes:
    return "".join(f"{PurePosixPath(f.path).name}: {f.credit}. Licence: {f.licence}\n" for f in files).encode()
