"""Whether artifacts are whole, down to the samples of a dataset, and mending those that are not.

What survives is found through the ledger: equal files of other artifacts, other versions with the same samples, and
the items of the encode runs that a dataset goes back to. Nothing is run again, no model is opened.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dataprep.encode.dataset import DATASET, TIMES, TIMES_DIGEST
from dataprep.encode_config import EncodeConfig
from dataprep.versions.check import Problem, check_dataset
from dataprep.versions.repair import Copy, MemberSource, Repair, repair
from dataprep.versions.sources import EncodedItems, OtherDataset
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind, Manifest, ManifestFile, read_manifest, verify
from m4v.core.canonical import canonical_json
from m4v.core.config import parse
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX
from m4v.core.storage import Storage
from pipelines.ledger import ArtifactRow, Ledger, RunRow
from pipelines.stages import ENCODE

MAX_PROBLEMS = 1000  # of one artifact; a broken disk has more than anybody reads
ITEM_DIGITS = 32  # of a digest, in the name of a step's item folder
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What is wrong with an artifact: the first difference from its manifest, and every damaged sample."""

    problem: str | None
    problems: tuple[Problem, ...] = ()


def inspect(row: ArtifactRow, *, deep: bool) -> Verdict:
    """Hold an artifact against its manifest and, when `deep`, a dataset's samples against its index."""
    place, problem = Storage(row.uri), None
    try:
        verify(place, row.artifact_id, deep=deep)
    except (DataIntegrityError, InputError) as error:
        problem = error.message
    found: tuple[Problem, ...] = ()
    if deep and row.kind == ArtifactKind.DATASET and _has_samples(place):
        found = tuple(islice(check_dataset(place), MAX_PROBLEMS))
    if problem is None and found:
        problem = f"{found[0].place}: {found[0].what}"
    return Verdict(problem, found)


def _has_samples(place: Storage) -> bool:
    try:
        return INDEX in {f.path for f in read_manifest(place).files}
    except (DataIntegrityError, InputError):
        return False


def mend(ledger: Ledger, items_uri: str, row: ArtifactRow) -> Repair:
    """Make the damaged files of an artifact whole again, those that can be.

    Raises DataIntegrityError when its manifest is gone or damaged and its files are not all whole.
    """
    place = Storage(row.uri)
    try:
        manifest = read_manifest(place)
    except (DataIntegrityError, InputError):
        manifest = None
    if manifest is None or manifest.artifact_id != row.artifact_id:
        return _mend_manifest(place, row)
    with _Survivors(ledger, items_uri, row).opened() as survivors:
        return repair(place, manifest, survivors.copies, survivors.sources(place))


def _mend_manifest(place: Storage, row: ArtifactRow) -> Repair:
    """Files alone make an artifact's id, so whole ones tell their manifest; the ledger has the summary."""
    files = [
        ManifestFile(path=f.path, size_bytes=f.size_bytes, sha256=place.digest(f.path))
        for f in place.list()
        if f.path != MANIFEST
    ]
    manifest = Manifest(kind=row.kind, files=tuple(files), summary=dict(row.summary))
    if manifest.artifact_id != row.artifact_id:
        raise DataIntegrityError(
            "the manifest cannot be used, and the files are not whole", value=row.artifact_id, where=row.uri
        )
    place.write_bytes(MANIFEST, canonical_json(manifest.canonical()))
    return Repair(repaired={MANIFEST: "the files and the ledger"})


class _Survivors:
    """Looks in the ledger for what may still be whole."""

    def __init__(self, ledger: Ledger, items_uri: str, row: ArtifactRow) -> None:
        self._ledger, self._items_uri, self._row = ledger, items_uri, row
        self._by_digest: dict[str, list[Copy]] | None = None
        self._cache = Path()

    @contextmanager
    def opened(self) -> Iterator[_Survivors]:
        """With a directory for what has to be fetched."""
        with tempfile.TemporaryDirectory() as directory:
            self._cache = Path(directory)
            yield self

    def copies(self, sha256: str) -> list[Copy]:
        """Files of other artifacts of this kind with the same digest."""
        if self._by_digest is None:
            self._by_digest = {}
            for place in (Storage(row.uri) for row in self._others()):
                for file in _files(place):
                    self._by_digest.setdefault(file.sha256, []).append(Copy(place, file.path))
        return self._by_digest.get(sha256, [])

    def sources(self, place: Storage) -> list[MemberSource]:
        """Where members of samples may be, nearest first: items, then other datasets."""
        if self._row.kind != ArtifactKind.DATASET:
            return []
        return [*self._items(place), *(OtherDataset(self._artifact(row)) for row in self._others())]

    def _others(self) -> list[ArtifactRow]:
        rows = self._ledger.artifacts(kind=self._row.kind, limit=None)
        return [row for row in rows if row.artifact_id != self._row.artifact_id]

    def _items(self, place: Storage) -> Iterator[MemberSource]:
        try:
            facts = json.loads(place.read_bytes(DATASET))
            digests = [("latents", facts["codec"]["digest"]), ("texts", facts["text_encoder"]["digest"]),
                       (TIMES, TIMES_DIGEST)]  # fmt: skip
        except (InputError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s of %s cannot be read, so no item is looked for: %s", DATASET, place.uri, error)
            return
        latents, texts, times = (Storage(f"{self._items_uri}/{step}/{d[:ITEM_DIGITS]}") for step, d in digests)
        for run in self._encode_runs(self._row.artifact_id, set()):
            for port in (p for p in run.inputs if p.kind == ArtifactKind.CLIPS):
                table = self._artifact(self._ledger.artifact(port.artifact_id, ArtifactKind.CLIPS))
                config = parse(EncodeConfig, run.config, f"run {run.run_id}")
                yield EncodedItems(table, config, latents, texts, times, facts)

    def _encode_runs(self, artifact_id: str, seen: set[str]) -> list[RunRow]:
        """Encode runs that a dataset goes back to, through any number of versions."""
        found: list[RunRow] = []
        for run in self._ledger.producers(artifact_id):
            if run.stage == ENCODE.name:
                found.append(run)
            for port in run.inputs:
                if port.kind == ArtifactKind.DATASET and port.artifact_id not in seen:
                    seen.add(port.artifact_id)
                    found += self._encode_runs(port.artifact_id, seen)
        return found

    def _artifact(self, row: ArtifactRow) -> Artifact:
        return Artifact(row.uri, row.artifact_id, row.kind, self._cache)


def _files(place: Storage) -> tuple[ManifestFile, ...]:
    try:
        return read_manifest(place).files
    except (DataIntegrityError, InputError):
        return ()  # gone or damaged: of no help
