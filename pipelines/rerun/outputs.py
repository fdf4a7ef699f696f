"""An output that was made again, held file by file against the recorded artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from m4v.core.artifacts import Artifact, Manifest, ManifestFile, read_manifest
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.stage import OutputResult
from m4v.core.storage import Storage
from pipelines.ledger import Ledger, PortRow
from pipelines.rerun.files import compare_files
from pipelines.rerun.verdict import FileVerdict, OutputVerdict, Place, Tolerance, Verdict, worst


def compare_output(ledger: Ledger, port: PortRow, made: OutputResult | None, tolerance: Tolerance) -> OutputVerdict:
    """The verdict on one declared output; equal ids are equal files, so only those that differ are read."""
    if made is None:
        return OutputVerdict(port.name, port.kind, Verdict.DIFFERS, port.artifact_id, None, 0, note="not made")
    staged = read_manifest(Storage(made.staging))
    verdict = OutputVerdict(
        port.name, port.kind, Verdict.IDENTICAL, port.artifact_id, made.artifact_id, len(staged.files)
    )
    if made.artifact_id == port.artifact_id:
        return verdict
    row = ledger.artifact(port.artifact_id, port.kind)
    published = Artifact(row.uri, row.artifact_id, row.kind, Path(made.staging).parent / "recorded")
    try:
        manifest = published.manifest
    except (DataIntegrityError, InputError) as error:  # deleted or damaged: the ids differ, more cannot be said
        note = f"the recorded bytes cannot be compared: {error.what}"
        return replace(verdict, verdict=Verdict.DIFFERS, note=note)
    files = _compare(published, manifest, made, staged, tolerance)
    count = len({f.path for f in manifest.files} | {f.path for f in staged.files})
    return replace(verdict, verdict=worst(f.verdict for f in files), files=count, different=tuple(files))


def _compare(
    published: Artifact, manifest: Manifest, made: OutputResult, staged: Manifest, tolerance: Tolerance
) -> list[FileVerdict]:
    """Every file that is not identical, in order of path."""
    old, new = ({f.path: f for f in side.files} for side in (manifest, staged))
    found: list[FileVerdict] = []
    for path in sorted(old.keys() | new.keys()):
        a, b = old.get(path), new.get(path)
        if a is not None and b is not None and a.sha256 == b.sha256:
            continue
        one = _one_sided(path, a) if a is None or b is None else _read(published, made, path, tolerance)
        found.append(replace(one, recorded_sha256=a.sha256 if a else None, made_sha256=b.sha256 if b else None))
    return found


def _one_sided(path: str, recorded: ManifestFile | None) -> FileVerdict:
    sides = ("absent", "present") if recorded is None else ("present", "absent")
    return FileVerdict(path, Verdict.DIFFERS, first=Place("file", *sides))


def _read(published: Artifact, made: OutputResult, path: str, tolerance: Tolerance) -> FileVerdict:
    shared = next((f for f in made.shared if f.path == path), None)
    there = Path(made.staging) / path if shared is None else Storage(shared.uri).local_root / shared.source
    one = compare_files(path, published.path(path), there, tolerance)
    if one.verdict is not Verdict.IDENTICAL:
        return one
    # The digests differ and the bytes do not: the recorded file is no longer what its manifest says.
    place = Place("the recorded file's bytes are not those of its manifest", None, None)
    return replace(one, verdict=Verdict.DIFFERS, first=place)
