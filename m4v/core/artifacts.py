"""Artifacts: immutable directories with a `manifest.json`, identified by the Merkle root of their files.

A directory without a manifest does not exist as an artifact. `manifest.json` is written last and is not
part of the root; timings, hosts and absolute paths never stand inside (kind `report` excepted).
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from m4v.core.canonical import FileEntry, canonical_json, digest_file, merkle_root
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage, write_atomic

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


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
    path: str
    size_bytes: int
    sha256: str


class Manifest(FrozenModel):
    """`summary` holds a few JSON facts for people and tables (counts, shapes, digests)."""

    schema_version: int = SCHEMA_VERSION
    kind: ArtifactKind
    files: tuple[ManifestFile, ...]
    summary: dict[str, object] = {}

    @property
    def artifact_id(self) -> str:
        return merkle_root(FileEntry(f.path, f.size_bytes, f.sha256) for f in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    def entry(self, path: str) -> ManifestFile:
        for file in self.files:
            if file.path == path:
                return file
        raise DataIntegrityError("artifact has no such file", value=path, where=f"{self.kind} {self.artifact_id[:12]}")


def build_manifest(directory: Path, kind: ArtifactKind, summary: dict[str, object]) -> Manifest:
    """Hash every file below a local directory; raises DataIntegrityError if it holds none."""
    files = [
        ManifestFile(path=p.relative_to(directory).as_posix(), size_bytes=p.stat().st_size, sha256=digest_file(p))
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.relative_to(directory).as_posix() != MANIFEST
    ]
    if not files:
        raise DataIntegrityError("stage left an empty output", value=str(kind), where=str(directory))
    return Manifest(kind=kind, files=tuple(sorted(files, key=lambda f: f.path)), summary=summary)


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


def verify(storage: Storage, artifact_id: str | None = None, *, deep: bool = True) -> Manifest:
    """Check every file against the manifest: size always, sha256 when `deep`; extra files are refused.

    Raises DataIntegrityError naming the first file that differs.
    """
    manifest = read_manifest(storage)
    if artifact_id is not None and manifest.artifact_id != artifact_id:
        raise DataIntegrityError("manifest is of another artifact", value=manifest.artifact_id, where=storage.uri)
    present = {f.path: f.size_bytes for f in storage.list() if f.path != MANIFEST}
    expected = {f.path for f in manifest.files}
    if extra := sorted(set(present) - expected):
        raise DataIntegrityError("file is not in the manifest", value=extra[0], where=storage.uri)
    for file in manifest.files:
        if present.get(file.path) != file.size_bytes:
            raise DataIntegrityError(
                f"size is {present.get(file.path)}, manifest says {file.size_bytes}", value=file.path, where=storage.uri
            )
        if deep and _digest(storage, file.path) != file.sha256:
            raise DataIntegrityError("bytes differ from the manifest", value=file.path, where=storage.uri)
    return manifest


def _digest(storage: Storage, path: str) -> str:
    import hashlib

    sha = hashlib.sha256()
    with storage.open(path) as stream:
        while chunk := stream.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


class Artifact:
    """A published artifact for reading. `path` gives a local file: in place for a local store, else a
    verified copy below `cache`."""

    def __init__(self, uri: str, artifact_id: str, kind: ArtifactKind, cache: Path) -> None:
        self.id, self.kind, self.storage = artifact_id, kind, Storage(uri)
        self._cache = cache / artifact_id
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            self._manifest = read_manifest(self.storage)
            if self._manifest.artifact_id != self.id:
                raise DataIntegrityError("manifest is of another artifact", value=self.id, where=self.storage.uri)
        return self._manifest

    def path(self, name: str) -> Path:
        entry = self.manifest.entry(name)
        if self.storage.is_local:
            return self.storage.local_root / name
        target = self.storage.fetch(name, self._cache / name, entry.sha256)
        if digest_file(target) != entry.sha256:
            target.unlink()
            raise DataIntegrityError("bytes differ from the manifest", value=name, where=self.storage.uri)
        return target

    def names(self, prefix: str = "") -> list[str]:
        return [f.path for f in self.manifest.files if f.path.startswith(prefix)]
