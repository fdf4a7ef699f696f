"""From a row of a source listing to a local file: in place, or a copy (of a remote file, of a member of an archive)
checked against its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataprep.media.cache import MediaCache, limit_bytes
from dataprep.quarantine import ItemError, Reason
from dataprep.sources.archives import copy_member, split_path
from dataprep.sources.listing import SourceFacts, SourceReader
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.stage import StageContext
from m4v.core.storage import Storage


@dataclass(frozen=True)
class MediaFile:
    """One listed file and how to reach it. `full_digest`: `digest` is the sha256 of all its bytes."""

    root_uri: str
    path: str
    size_bytes: int
    digest: str
    full_digest: bool
    cache: str  # local directory for copies of remote files
    cache_bytes: int | None = None  # that they may hold together

    def local(self) -> Path:
        """A local path, of a copy until this process asks for the next file.

        Raises ItemError: missing_file; source_changed when size or digest differ; ConfigError, InfrastructureError
        where there is no room for a copy.
        """
        root = Storage(self.root_uri)
        inside_archive = split_path(self.path) is not None
        if root.is_local and not inside_archive:
            path = root.local_root / self.path
            if not path.is_file():
                raise ItemError(Reason.MISSING_FILE, "listed, but not there")
            if path.stat().st_size != self.size_bytes:
                raise ItemError(Reason.SOURCE_CHANGED, f"{path.stat().st_size} bytes, listed with {self.size_bytes}")
            return path
        try:
            return MediaCache(Path(self.cache), self.cache_bytes).get(self.digest, self.size_bytes, self._copy)
        except InputError:
            raise ItemError(Reason.MISSING_FILE, "listed, but not there") from None
        except DataIntegrityError as error:
            raise ItemError(Reason.SOURCE_CHANGED, error.what) from None

    def _copy(self, target: Path) -> None:
        root = Storage(self.root_uri)
        copy_member(root, self.path, target) if split_path(self.path) is not None else root.fetch(self.path, target)
        try:
            self.check(target)
        except ItemError:
            target.unlink()
            raise

    def check(self, path: Path) -> None:
        """Compare all bytes with the listing; raises ItemError `source_changed`."""
        if path.stat().st_size != self.size_bytes or (self.full_digest and digest_file(path) != self.digest):
            raise ItemError(Reason.SOURCE_CHANGED, "bytes differ from those that were listed")


class MediaLocator:
    """Media files of a stage's source inputs, by source name."""

    def __init__(self, context: StageContext, readers: list[SourceReader]) -> None:
        self._cache, self._cache_bytes = str(context.scratch / "media"), limit_bytes()
        self._roots: dict[str, tuple[str, SourceFacts]] = {}
        for reader in readers:
            inside = reader.facts.media == "inside"
            root = reader.artifact.storage if inside else context.location(reader.name)
            self._roots[reader.name] = (root.uri, reader.facts)

    def file(self, source: str, path: str, size_bytes: int, digest: str) -> MediaFile:
        root, facts = self._roots[source]
        return MediaFile(root, path, size_bytes, digest, facts.identity == "full", self._cache, self._cache_bytes)
