"""The folder of links that VBench expects: `PROMPT-INDEX.mp4` and nothing else, whatever the disk thinks of case."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from eval.suites import SuiteVideo
from m4v.core.errors import DataIntegrityError, InputError

MOST_BYTES = 255  # of a file's name
_PROBE = "m4v-Case"


def lay_out(videos: Sequence[SuiteVideo], source: Path, folder: Path) -> dict[str, Path]:
    """Make `folder` anew with a link to each video under its `name`; returns the links by the video's file.

    Where the disk takes two names for one (`A fantasy landscape`, `a fantasy landscape`), the second goes to
    `folder-2`, a folder of its own beside it. VBench takes the suffix of all videos from whatever comes first, so
    nothing else may lie there. Raises InputError for a name that no file can have, DataIntegrityError for a video
    that is not in `source` and for a name that stands twice.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folds = _folds_case(folder)
    places: dict[str, Path] = {}
    taken: dict[str, int] = {}
    names: set[str] = set()
    for video in videos:
        _check(video, source, names)
        key = _folded(video.name) if folds else video.name
        taken[key] = taken.get(key, 0) + 1
        place = folder if taken[key] == 1 else folder.with_name(f"{folder.name}-{taken[key]}")
        if place != folder and taken[key] > 1 and not any(p.parent == place for p in places.values()):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        places[video.file] = place / video.name
        _link(source / video.file, places[video.file])
    return places


def _check(video: SuiteVideo, source: Path, names: set[str]) -> None:
    if video.name in names:
        raise DataIntegrityError("two videos have one name", value=video.name, where="VBench's folder")
    names.add(video.name)
    if "/" in video.name or "\0" in video.name or len(os.fsencode(video.name)) > MOST_BYTES:
        raise InputError(
            f"no file can have the name that VBench wants: it has a slash or more than {MOST_BYTES} bytes",
            value=video.name, next_step="use mode custom, which names files by number",
        )  # fmt: skip
    if not (source / video.file).is_file():
        raise DataIntegrityError("video is not there", value=video.file, where=str(source))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folds_case(folder: Path) -> bool:
    """Whether the disk takes `A` for `a`; leaves nothing behind."""
    probe = folder / _PROBE
    probe.touch()
    try:
        return (folder / _PROBE.swapcase()).exists()
    finally:
        probe.unlink()


def _link(source: Path, target: Path) -> None:
    """A symbolic link; a hard link or a copy where the disk has none."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
