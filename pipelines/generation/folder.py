"""A folder of generated videos with its manifest, `generate.jsonl`: what is finished, and with which settings.

A video is renamed into place when it is whole, then its line is appended and synced: a kill at any time loses at most
the video under way. When all is done the lines stand in order of their files, whatever happened on the way.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError

from m4v.core.canonical import digest_file
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError, DataIntegrityError, InfrastructureError
from m4v.core.storage import storage_faults, write_atomic
from pipelines.generation.prompts import Job

MANIFEST = "generate.jsonl"
LOCK = ".generate.lock"
_OWN_TEMPORARY = re.compile(r"\.(\d{4,}-.*\.mp4|generate\.jsonl)\.[0-9a-f]{32}\.tmp")


class Settings(FrozenModel):
    """What all videos of a folder share. `checkpoint` is an artifact id, or the Merkle root of the files read;
    `imported` has the ids of the imported weights that codec and text encoder use; `sampler` is without its negative
    prompt, which each video has."""

    checkpoint: str
    weights: Literal["ema", "raw"]
    imported: dict[str, str]
    sampler: dict[str, JsonValue]
    frames: int
    height: int
    width: int
    fps: float
    crf: int
    device: str  # its kind: another may round otherwise
    dtype: str


class VideoRecord(FrozenModel):
    """One line of the manifest. `image` is the sha256 of the first frame's file."""

    file: str
    prompt: str
    negative: str
    seed: int
    image: str | None
    sha256: str
    settings: Settings


class OutputFolder:
    """Open for one process at a time (`opened_folder`)."""

    def __init__(self, root: Path, settings: Settings, default_negative: str) -> None:
        self.root, self.settings = root, settings
        self._default_negative = default_negative
        self._images: dict[Path, str] = {}
        for stale in [p for p in root.iterdir() if _OWN_TEMPORARY.fullmatch(p.name)]:
            stale.unlink()  # of a killed process: we hold the lock
        self.records = {r.file: r for r in self._read() if (root / r.file).is_file()}
        self._check_settings()
        self.write_manifest()

    def path(self, job: Job) -> Path:
        return self.root / job.name

    def finished(self, job: Job) -> VideoRecord | None:
        """The record of a job whose file is whole. Raises ConfigError when its name is taken by another video."""
        record = self.records.get(job.name)
        if record is None:
            return None
        wanted = self._record(job, record.sha256)
        if record != wanted:
            names = [n for n in ("prompt", "negative", "seed", "image") if getattr(record, n) != getattr(wanted, n)]
            raise ConfigError(
                f"{job.name} was made with another {' and '.join(names)}",
                value=getattr(record, names[0]), where=str(self.root),
                next_step="use another --out, or delete the file",
            )  # fmt: skip
        return record if digest_file(self.path(job)) == record.sha256 else None

    def add(self, job: Job) -> VideoRecord:
        """Record the finished file of a job."""
        record = self._record(job, digest_file(self.path(job)))
        self.records[record.file] = record
        with storage_faults(str(self.root)), (self.root / MANIFEST).open("ab") as stream:
            stream.write(_line(record))
            stream.flush()
            os.fsync(stream.fileno())
        return record

    def write_manifest(self) -> None:
        """All records in order of their files, once each."""
        lines = [_line(self.records[name]) for name in sorted(self.records)]
        with storage_faults(str(self.root)):
            write_atomic(self.root / MANIFEST, b"".join(lines))

    def _record(self, job: Job, sha256: str) -> VideoRecord:
        return VideoRecord(
            file=job.name, prompt=job.prompt, seed=job.seed, sha256=sha256, settings=self.settings,
            negative=self._default_negative if job.negative is None else job.negative,
            image=None if job.image is None else self._image_digest(job.image),
        )  # fmt: skip

    def _image_digest(self, image: Path) -> str:
        if image not in self._images:
            self._images[image] = digest_file(image)
        return self._images[image]

    def _read(self) -> Iterator[VideoRecord]:
        path = self.root / MANIFEST
        *whole, _torn = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        for number, line in enumerate(whole, 1):
            try:
                yield VideoRecord.model_validate_json(line)
            except ValidationError as error:
                raise DataIntegrityError(
                    f"line of the manifest cannot be read: {error.errors()[0]['msg']}", where=f"{path}, line {number}",
                    next_step="delete the line (its video is made again), or use another --out",
                ) from None  # fmt: skip

    def _check_settings(self) -> None:
        for record in self.records.values():
            if changed := differences(record.settings, self.settings):
                raise ConfigError(
                    f"the folder holds videos made with other settings: {'; '.join(changed)}", value=str(self.root),
                    next_step="use another --out, or the settings of before",
                )  # fmt: skip


def differences(old: Settings, new: Settings) -> list[str]:
    """`name was X, now Y` for every setting that differs."""
    before, now = _flat(old), _flat(new)
    names = [n for n in [*before, *(n for n in now if n not in before)] if before.get(n) != now.get(n)]
    return [f"{n} was {_shown(before.get(n))}, now {_shown(now.get(n))}" for n in names]


def _flat(settings: Settings) -> dict[str, object]:
    data = settings.canonical()
    sampler, imported = data.pop("sampler"), data.pop("imported")
    assert isinstance(sampler, dict)
    assert isinstance(imported, dict)
    return {**data, **sampler, **{f"weights {name}": value for name, value in imported.items()}}


def _shown(value: object) -> str:
    text = "the default" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _line(record: VideoRecord) -> bytes:
    return json.dumps(record.canonical(), sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@contextmanager
def opened_folder(root: Path, settings: Settings, default_negative: str) -> Iterator[OutputFolder]:
    """Make the folder if need be and hold it. Raises ConfigError when it cannot be written or its videos were made
    with other settings, InfrastructureError when another process writes there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        stream = (root / LOCK).open("wb")
    except OSError as error:
        raise ConfigError(
            f"output folder cannot be written: {error.strerror}", value=str(root), next_step="give another --out"
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InfrastructureError(
                "another m4v generate writes to this folder",
                value=str(root),
                next_step="wait for it, or use another --out",
            ) from None
        except OSError:  # a file system without locks: that there is one writer is the user's care
            pass
        yield OutputFolder(root, settings, default_negative)
