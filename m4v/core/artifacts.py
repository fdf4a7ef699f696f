"""Artifacts: immutable directories with a `manifest.json`, identified by the Merkle root of their files.

A directory without a manifest does not exist as an artifact. `manifest.json` is written last and is not
part of the root; timings, hosts and absolute paths never stand inside (kind `report` excepted).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from m4v.core.canonical import FileEntry, canonical_json, digest_file, merkle_root, plain_json
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage, check_relative, is_temporary, write_atomic
from m4v.core.threads import together

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_MANY_BYTES = 256 << 20
T = TypeVar("T")


class ArtifactKind(StrEnum):
    SOURCE = "source"
    CLIPS = "clips"
    DATASET = "dataset"
    CHECKPOINT = "checkpoint"
    SAMPLES = "samples"
    SCORES = "scores"
    REPORT = "report"
    WEIGHTS = "weights"


class ManifestFile(FrozenModel):
    """One file: plain relative path (a manifest from elsewhere must not lead out of its artifact)."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        try:
            path.encode()
            return check_relative(path)
        except (InputError, UnicodeEncodeError) as error:
            raise ValueError(str(error)) from None


class Manifest(FrozenModel):
    """`summary` holds a few JSON facts for people and tables (counts, shapes, digests)."""

    schema_version: int = SCHEMA_VERSION
    kind: ArtifactKind
    files: tuple[ManifestFile, ...]
    summary: dict[str, object] = {}

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({f.path for f in self.files}) != len(self.files):
            raise ValueError("a file stands twice in the manifest")
        return self

    @property
    def artifact_id(self) -> str:
        return merkle_root(FileEntry(f.path, f.size_bytes, f.sha256) for f in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    @cached_property
    def _by_path(self) -> dict[str, ManifestFile]:
        return {f.path: f for f in self.files}

    def entry(self, path: str) -> ManifestFile:
        """The entry of one file; raises DataIntegrityError when there is none."""
        if path in self._by_path:
            return self._by_path[path]
        raise DataIntegrityError("artifact has no such file", value=path, where=f"{self.kind} {self.artifact_id[:12]}")


def build_manifest(
    directory: Path, kind: ArtifactKind, summary: dict[str, object], shared: Iterable[FileEntry] = ()
) -> Manifest:
    """Hash every file below a local directory, unfinished temporaries left out; `shared` files lie elsewhere and
    are taken as described.

    Raises DataIntegrityError if it holds none, a link (whose target would stay behind), or a name or
    summary that canonical JSON cannot carry.
    """
    paths = [p for p in directory.rglob("*") if not p.is_dir() or p.is_symlink()]
    if links := sorted(str(p.relative_to(directory)) for p in paths if not p.is_file() or p.is_symlink()):
        raise DataIntegrityError(
            "output holds something that is not a plain file", value=links[0], where=str(directory)
        )
    names = {p.relative_to(directory).as_posix(): p for p in paths if not is_temporary(p.name)}
    names.pop(MANIFEST, None)
    elsewhere = [ManifestFile(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in shared]
    if not names and not elsewhere:
        raise DataIntegrityError("stage left an empty output", value=str(kind), where=str(directory))
    summarised = {k: plain_json(v) for k, v in summary.items()}
    try:
        found = sorted(names.items())
        sizes = [p.stat().st_size for _, p in found]
        digests = _each(digest_file, [p for _, p in found], sum(sizes))
        files = [
            ManifestFile(path=name, size_bytes=size, sha256=digest)
            for (name, _), size, digest in zip(found, sizes, digests, strict=True)
        ]
        ordered = sorted([*files, *elsewhere], key=lambda f: f.path)
        manifest = Manifest(kind=kind, files=tuple(ordered), summary=summarised)
        canonical_json(manifest.canonical())
    except ValidationError as error:
        raise DataIntegrityError(
            f"output cannot be described: {error.errors()[0]['msg']}", where=str(directory)
        ) from None
    except ValueError as error:
        raise DataIntegrityError(f"summary is not JSON: {error}", value=summary, where=str(directory)) from None
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    write_atomic(directory / MANIFEST, canonical_json(manifest.canonical()))


def read_manifest(storage: Storage) -> Manifest:
    """Raises DataIntegrityError when there is none or it does not parse."""
    if not storage.exists(MANIFEST):
        raise DataIntegrityError("artifact has no manifest", value=storage.uri, next_step="m4v artifacts verify")
    try:
        return Manifest.model_validate_json(storage.read_bytes(MANIFEST))
    except ValidationError as error:
        raise DataIntegrityError(f"manifest does not parse: {error.errors()[0]['msg']}", where=storage.uri) from None


def verify(
    storage: Storage, artifact_id: str | None = None, *, deep: bool = True, elsewhere: Collection[str] = ()
) -> Manifest:
    """Check every file against the manifest: size always, sha256 when `deep`; extra files are refused, and those
    that lie `elsewhere` need not be here.

    Raises DataIntegrityError naming the first file that differs.
    """
    manifest = read_manifest(storage)
    if artifact_id is not None and manifest.artifact_id != artifact_id:
        raise DataIntegrityError("manifest is of another artifact", value=manifest.artifact_id, where=storage.uri)
    present = {f.path: f.size_bytes for f in storage.list() if f.path != MANIFEST}
    expected = {f.path for f in manifest.files}
    if extra := sorted(set(present) - expected):
        raise DataIntegrityError("file is not in the manifest", value=extra[0], where=storage.uri)
    here = [f for f in manifest.files if f.path not in elsewhere]
    for file in here:
        if present.get(file.path) != file.size_bytes:
            raise DataIntegrityError(
                f"size is {present.get(file.path)}, manifest says {file.size_bytes}", value=file.path, where=storage.uri
            )
    digests = _each(storage.digest, [f.path for f in here], sum(f.size_bytes for f in here)) if deep else ()
    for file, digest in zip(here, digests, strict=False):  # none where not `deep`
        if digest != file.sha256:
            raise DataIntegrityError("bytes differ from the manifest", value=file.path, where=storage.uri)
    return manifest


def _each(digest: Callable[[T], str], files: Sequence[T], size_bytes: int) -> list[str]:
    """The digest of each file; in threads where there is enough to read that they are worth their start."""
    return together(digest, files) if size_bytes > _MANY_BYTES else [digest(file) for file in files]


@dataclass(frozen=True)
class ArtifactRef:
    """What another process needs to open a published artifact; picklable and hashable. `cache`: see Artifact."""

    artifact_id: str
    kind: ArtifactKind
    uri: str
    cache: str

    def open(self) -> Artifact:
        return Artifact(self.uri, self.artifact_id, self.kind, Path(self.cache))


class Artifact:
    """A published artifact for reading. `path` gives a local file: in place for a local store, else a
    verified copy below `cache`."""

    def __init__(self, uri: str, artifact_id: str, kind: ArtifactKind, cache: Path) -> None:
        self.id, self.kind, self.storage = artifact_id, kind, Storage(uri)
        self.ref = ArtifactRef(artifact_id, kind, self.storage.uri, str(cache))
        self._cache = cache / artifact_id
        self._manifest: Manifest | None = None
        self._fetched: set[str] = set()

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            found = read_manifest(self.storage)
            if found.artifact_id != self.id:
                raise DataIntegrityError("manifest is of another artifact", value=self.id, where=self.storage.uri)
            self._manifest = found
        return self._manifest

    def path(self, name: str) -> Path:
        entry = self.manifest.entry(name)
        if self.storage.is_local:
            return self.storage.local_root / name
        target = self._cache / name
        if name not in self._fetched:  # its digest is checked once, not on every call
            self.storage.fetch(name, target, entry.sha256)
            self._fetched.add(name)
        return target

    def folder(self) -> Path:
        """A local directory that holds every file: the artifact itself, or verified copies below `cache`."""
        for name in self.names():
            self.path(name)
        return self.storage.local_root if self.storage.is_local else self._cache

    def names(self, prefix: str = "") -> list[str]:
        return [f.path for f in self.manifest.files if f.path.startswith(prefix)]
