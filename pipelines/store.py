"""The artifact store: publishes staged outputs as immutable artifacts, locally or on `s3://`.

`artifacts/<kind>/<id[:2]>/<id>/`, the manifest last: a directory without one is a leftover, not an
artifact. Publishing the same bytes twice, or again after a crash at any point, ends in the same place.
"""

from __future__ import annotations

import errno
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m4v.core.artifacts import MANIFEST, ArtifactKind, Manifest, ManifestFile, read_manifest, verify
from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError
from m4v.core.remote import StoredChecksumError
from m4v.core.stage import OutputResult, SharedFile
from m4v.core.storage import Storage, is_temporary, storage_faults, sync_directory, sync_tree, temporary_beside

ARTIFACTS = "artifacts"
DAY_S = 86_400.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """A published artifact, as the ledger records it."""

    artifact_id: str
    kind: ArtifactKind
    uri: str
    size_bytes: int
    files: int
    summary: Mapping[str, Any] = field(default_factory=dict)


class ArtifactStore:
    """Artifacts below one root URI (a local path or `s3://bucket/prefix`)."""

    def __init__(self, root: str) -> None:
        self.storage = Storage(root)

    @property
    def uri(self) -> str:
        return self.storage.uri

    def place(self, artifact_id: str, kind: ArtifactKind) -> Storage:
        """Where an artifact lies or would lie."""
        return self.storage.child(f"{ARTIFACTS}/{kind}/{artifact_id[:2]}/{artifact_id}")

    def publish(self, output: OutputResult) -> ArtifactRecord:
        """Bring a staged output to its place and empty the staging; its bytes are checked first.

        What stands there already and verifies is adopted, also when the staging is gone (a crash came
        before the ledger row); anything else there is replaced. Raises DataIntegrityError when the
        staged bytes are not what `output` says.
        """
        target = self.place(output.artifact_id, output.kind)
        staging = Storage(output.staging)
        damaged = target.exists(MANIFEST)
        manifest = _verified(target, output.artifact_id) if damaged else None
        if manifest is None:
            manifest = _check_staged(staging, output)
            incoming = _Incoming(staging, manifest, {f.path: f for f in output.shared})
            with storage_faults(target.uri):
                if target.is_local:
                    _bring_local(incoming, target)
                else:
                    _bring_remote(incoming, target, damaged)
        staging.delete()
        return _record(target, manifest)

    def open(self, artifact_id: str, kind: ArtifactKind) -> Storage:
        """Storage of a published artifact; raises InputError when it is not here."""
        target = self.place(artifact_id, kind)
        if not target.exists(MANIFEST):
            raise InputError(
                f"store has no such {kind}", value=artifact_id, where=self.uri, next_step="m4v artifacts list"
            )
        return target

    def verify(self, artifact_id: str, kind: ArtifactKind | None = None, *, deep: bool = True) -> Manifest:
        """Hold an artifact against its manifest (sizes; every byte when `deep`).

        Raises InputError when it is not here, DataIntegrityError naming the first file that differs.
        """
        return verify(self.open(artifact_id, kind or self._kind_of(artifact_id)), artifact_id, deep=deep)

    def _kind_of(self, artifact_id: str) -> ArtifactKind:
        for kind in ArtifactKind:
            if self.place(artifact_id, kind).exists(MANIFEST):
                return kind
        raise InputError(
            "store has no such artifact", value=artifact_id, where=self.uri, next_step="m4v artifacts list"
        )

    def list(self, kind: ArtifactKind | None = None) -> Iterator[ArtifactRecord]:
        """Published artifacts by kind and id; leftovers are passed over."""
        for place in self._places(kind):
            if not _is_published(place):
                continue
            try:
                yield _record(place, read_manifest(place))
            except DataIntegrityError as error:
                _log.warning("an artifact in the store is damaged: %s", error)

    def sweep(self, older_than_s: float = DAY_S) -> int:
        """Delete leftovers of unfinished publishes untouched for `older_than_s`; returns how many.

        Younger ones may belong to a publish that is under way.
        """
        swept = 0
        for place in self.leftovers(older_than_s):
            _log.info("deleting what an unfinished publish left at %s", place.uri)
            place.delete()
            swept += 1
        return swept

    def leftovers(self, older_than_s: float = DAY_S) -> Iterator[Storage]:
        """What `sweep` would delete."""
        for place in self._places(None):
            if _is_published(place):
                continue
            files = [place.modified_at(f.path) for f in place.list()]
            touched = max(files) if files else (place.modified_at("") if place.is_local else 0.0)
            if touched <= time.time() - older_than_s:
                yield place

    def _places(self, kind: ArtifactKind | None) -> Iterator[Storage]:
        """Directories of artifacts and of leftovers."""
        for kind_name in [str(kind)] if kind else self.storage.directories(ARTIFACTS):
            for first in self.storage.directories(f"{ARTIFACTS}/{kind_name}"):
                for name in self.storage.directories(f"{ARTIFACTS}/{kind_name}/{first}"):
                    yield self.storage.child(f"{ARTIFACTS}/{kind_name}/{first}/{name}")


def _is_published(place: Storage) -> bool:
    return not is_temporary(place.uri.rsplit("/", 1)[-1]) and place.exists(MANIFEST)


def _record(place: Storage, manifest: Manifest) -> ArtifactRecord:
    return ArtifactRecord(
        artifact_id=manifest.artifact_id,
        kind=manifest.kind,
        uri=place.uri,
        size_bytes=manifest.size_bytes,
        files=len(manifest.files),
        summary=manifest.summary,
    )


def _verified(place: Storage, artifact_id: str) -> Manifest | None:
    """Manifest of the artifact that stands there and verifies to the last byte, else None."""
    try:
        return verify(place, artifact_id, deep=True)
    except (DataIntegrityError, StoredChecksumError) as error:
        _log.warning("artifact in the store is damaged and will be replaced: %s", error)
        return None


def _check_staged(staging: Storage, output: OutputResult) -> Manifest:
    if not staging.exists(MANIFEST):
        raise DataIntegrityError(
            f"staged output {output.name} is gone and the store has no copy",
            value=output.artifact_id,
            where=staging.uri,
            next_step="run the stage again",
        )
    manifest = verify(staging, output.artifact_id, deep=True, elsewhere={f.path for f in output.shared})
    if manifest.kind != output.kind:
        raise DataIntegrityError(f"staged output is {manifest.kind}, not {output.kind}", where=staging.uri)
    return manifest


@dataclass(frozen=True)
class _Incoming:
    """A staged artifact on its way in: most files lie in `staging`, the `shared` ones in artifacts that stand."""

    staging: Storage
    manifest: Manifest
    shared: Mapping[str, SharedFile]

    def bring(self, file: ManifestFile, target: Storage) -> None:
        """Copy, link or upload one file to `target`."""
        if file.path in self.shared:
            one = self.shared[file.path]
            target.share(Storage(one.uri), one.source, file.path, file.sha256)
        elif target.is_local:
            self.staging.fetch(file.path, target.local_root / file.path, file.sha256)
        else:
            _upload(self.staging, file.path, target)


def _bring_local(incoming: _Incoming, target: Storage) -> None:
    """One rename; from another filesystem or store, a copy beside the place first."""
    place, staging, manifest = target.local_root, incoming.staging, incoming.manifest
    place.parent.mkdir(parents=True, exist_ok=True)
    if staging.is_local and staging.local_root.stat().st_dev == place.parent.stat().st_dev:
        for file in (f for f in manifest.files if f.path in incoming.shared):
            incoming.bring(file, staging)
        if _try_take(staging.local_root, manifest, place):
            return
    copy = temporary_beside(place)
    for file in manifest.files:
        incoming.bring(file, Storage(str(copy)))
    staging.fetch(MANIFEST, copy / MANIFEST)
    _take(copy, manifest, place)


def _try_take(directory: Path, manifest: Manifest, place: Path) -> bool:
    """False when the directory is on another filesystem than the place."""
    for path in [p for p in directory.rglob("*") if is_temporary(p.name)]:
        path.unlink()  # of a write that was killed; never part of the artifact
    try:
        _take(directory, manifest, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _take(directory: Path, manifest: Manifest, place: Path) -> None:
    """Rename into place; what stands there is adopted if it verifies, and moved away if not."""
    sync_tree(directory)
    for _ in range(3):
        try:
            directory.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if _verified(Storage(str(place)), manifest.artifact_id) is not None:
                Storage(str(directory)).delete()  # another process was first with the same bytes
                return
            away = temporary_beside(place)
            place.rename(away)
            Storage(str(away)).delete()
        else:
            sync_directory(place.parent)
            return
    raise InfrastructureError("others keep writing to the artifact's place", where=str(place), next_step="run again")


def _bring_remote(incoming: _Incoming, target: Storage, damaged: bool) -> None:
    """Upload what is not there yet, drop what does not belong, then the manifest.

    Nothing that belongs is ever deleted, so two publishers of the same bytes cannot hurt each other.
    """
    manifest = incoming.manifest
    if damaged:
        target.delete(MANIFEST)  # it must not vouch for what changes below it
    present = {f.path: f.size_bytes for f in target.list() if f.path != MANIFEST}
    for path in sorted(present.keys() - {f.path for f in manifest.files}):
        target.delete(path)
    for file in manifest.files:
        if present.get(file.path) != file.size_bytes or not _holds(target, file):
            incoming.bring(file, target)
    arrived = {f.path: f.size_bytes for f in target.list()}
    for file in manifest.files:
        if arrived.get(file.path) != file.size_bytes:
            raise InfrastructureError("upload is incomplete", value=file.path, where=target.uri, next_step="run again")
    _upload(incoming.staging, MANIFEST, target)


def _holds(target: Storage, file: ManifestFile) -> bool:
    """Are the bytes that lie there those of the manifest?"""
    try:
        return target.digest(file.path) == file.sha256
    except StoredChecksumError:
        return False


def _upload(staging: Storage, path: str, target: Storage) -> None:
    if staging.is_local:
        target.put_file(staging.local_root / path, path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        target.put_file(staging.fetch(path, Path(scratch) / "file"), path)
