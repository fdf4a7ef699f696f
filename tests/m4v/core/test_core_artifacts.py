"""Manifests: what they refuse, what verifying sees, and reading an artifact from either store."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from m4v.core import artifacts
from m4v.core.artifacts import (
    MANIFEST,
    Artifact,
    ArtifactKind,
    Manifest,
    build_manifest,
    read_manifest,
    verify,
    write_manifest,
)
from m4v.core.canonical import FileEntry, digest_bytes, merkle_root
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "artifact"
    (root / "shards").mkdir(parents=True)
    (root / "shards/0.tar").write_bytes(b"shard")
    (root / "index.json").write_bytes(b"{}")
    return root


def sealed(directory: Path, **summary: object) -> Manifest:
    manifest = build_manifest(directory, ArtifactKind.DATASET, dict(summary))
    write_manifest(directory, manifest)
    return manifest


def test_a_manifest_says_what_is_there(directory: Path) -> None:
    manifest = sealed(directory, clips=3)
    assert [(f.path, f.size_bytes, f.sha256) for f in manifest.files] == [
        ("index.json", 2, digest_bytes(b"{}")),
        ("shards/0.tar", 5, digest_bytes(b"shard")),
    ]
    assert manifest.artifact_id == merkle_root(FileEntry(f.path, f.size_bytes, f.sha256) for f in manifest.files)
    assert manifest.size_bytes == 7
    assert read_manifest(Storage(str(directory))) == manifest
    perfect = build_manifest(directory, ArtifactKind.DATASET, {"psnr": float("inf"), "flops": 1.5e18, "n": 2**60})
    assert perfect.summary == {"psnr": "Infinity", "flops": 1.5e18, "n": str(2**60)}
    stored = json.loads((directory / MANIFEST).read_bytes())
    assert (stored["schema_version"], stored["kind"], stored["summary"]) == (1, "dataset", {"clips": 3})


def test_the_id_is_of_the_files_alone(directory: Path) -> None:
    first = sealed(directory, note="one").artifact_id
    assert build_manifest(directory, ArtifactKind.CLIPS, {"note": "two"}).artifact_id == first
    os.utime(directory / "index.json", (1, 1))
    (directory / "index.json").chmod(0o600)
    (directory / "empty directory").mkdir()
    (directory / "shards/.1.tar.abc.tmp").write_bytes(b"a write that was killed")
    assert build_manifest(directory, ArtifactKind.DATASET, {}).artifact_id == first
    (directory / "shards/0.tar").rename(directory / "shards/1.tar")
    assert build_manifest(directory, ArtifactKind.DATASET, {}).artifact_id != first


def test_outputs_that_cannot_be_sealed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataIntegrityError, match="empty output: 'clips'"):
        build_manifest(tmp_path / "empty", ArtifactKind.CLIPS, {})
    for target in ("index.json", "nowhere", "shards"):
        (directory / "link").symlink_to(directory / target)
        with pytest.raises(DataIntegrityError, match="not a plain file: 'link'"):
            build_manifest(directory, ArtifactKind.DATASET, {})
        (directory / "link").unlink()
    with pytest.raises(DataIntegrityError, match="summary is not JSON"):
        build_manifest(directory, ArtifactKind.DATASET, {"facts": object()})
    (directory / os.fsdecode(b"bad\xff")).write_bytes(b"")
    with pytest.raises(DataIntegrityError, match="output cannot be described"):
        build_manifest(directory, ArtifactKind.DATASET, {})
    (directory / os.fsdecode(b"bad\xff")).unlink()
    (directory / "back\\slash").write_bytes(b"")
    with pytest.raises(DataIntegrityError, match="plain relative path"):
        build_manifest(directory, ArtifactKind.DATASET, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "../../etc/passwd"}, "plain relative path"),
        ({"path": "/etc/passwd"}, "plain relative path"),
        ({"sha256": "F" * 64}, "match pattern"),
        ({"size_bytes": -1}, "greater than or equal to 0"),
        ({"extra": 1}, "Extra inputs"),
        ({"path": "shards/0.tar"}, "stands twice"),
    ],
)
def test_manifests_from_elsewhere_are_held_to_the_form(
    directory: Path, change: dict[str, object], message: str
) -> None:
    sealed(directory)
    stored = json.loads((directory / MANIFEST).read_bytes())
    stored["files"][0].update(change)
    (directory / MANIFEST).write_text(json.dumps(stored))
    with pytest.raises(DataIntegrityError, match=f"manifest does not parse: .*{message}"):
        read_manifest(Storage(str(directory)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "shards/0.tar").write_bytes(b"sharD"), "bytes differ from the manifest: 'shards/0.tar'"),
        (lambda d: (d / "shards/0.tar").write_bytes(b"shar"), "size is 4, manifest says 5"),
        (lambda d: (d / "index.json").unlink(), "size is None, manifest says 2"),
        (lambda d: (d / "more").touch(), "file is not in the manifest: 'more'"),
        (lambda d: (d / MANIFEST).unlink(), "artifact has no manifest"),
        (lambda d: (d / MANIFEST).write_bytes(b""), "manifest does not parse"),
    ],
)
def test_verifying_names_the_first_difference(directory: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    manifest = sealed(directory)
    storage = Storage(str(directory))
    assert verify(storage, manifest.artifact_id) == manifest
    with pytest.raises(DataIntegrityError, match="manifest is of another artifact"):
        verify(storage, "0" * 64)
    damage(directory)
    with pytest.raises(DataIntegrityError, match=message):
        verify(storage, manifest.artifact_id)


def test_a_shallow_check_reads_no_bytes(directory: Path) -> None:
    manifest = sealed(directory)
    (directory / "shards/0.tar").write_bytes(b"sharD")
    verify(Storage(str(directory)), manifest.artifact_id, deep=False)


def test_reading_a_local_artifact_in_place(directory: Path, tmp_path: Path) -> None:
    manifest = sealed(directory)
    artifact = Artifact(str(directory), manifest.artifact_id, ArtifactKind.DATASET, tmp_path / "cache")
    assert artifact.path("shards/0.tar") == directory / "shards/0.tar"
    assert artifact.names() == ["index.json", "shards/0.tar"]
    assert artifact.names("shards/") == ["shards/0.tar"]
    with pytest.raises(DataIntegrityError, match="artifact has no such file: 'nothing'"):
        artifact.path("nothing")
    assert artifact.folder() == directory
    assert artifact.ref.open().folder() == directory
    assert not (tmp_path / "cache").exists()
    stranger = Artifact(str(directory), "0" * 64, ArtifactKind.DATASET, tmp_path / "cache")
    for read in (stranger.folder, lambda: stranger.path("index.json")):
        with pytest.raises(DataIntegrityError, match="manifest is of another artifact"):
            read()


def test_reading_a_remote_artifact_through_a_checked_copy(directory: Path, s3_root: str, tmp_path: Path) -> None:
    manifest = sealed(directory)
    remote = Storage(s3_root)
    for name in ("index.json", "shards/0.tar", MANIFEST):
        remote.put_file(directory / name, name)
    cache = tmp_path / "cache"
    artifact = Artifact(s3_root, manifest.artifact_id, ArtifactKind.DATASET, cache)
    copy = artifact.path("shards/0.tar")
    assert copy == cache / manifest.artifact_id / "shards/0.tar"
    assert copy.read_bytes() == b"shard"
    remote.delete("shards")
    assert artifact.path("shards/0.tar") == copy, "what is here and checked is not asked for again"
    another = Artifact(s3_root, manifest.artifact_id, ArtifactKind.DATASET, cache)
    assert another.path("shards/0.tar").read_bytes() == b"shard", "nor by another process with the same cache"
    remote.put_file(directory / "shards/0.tar", "shards/0.tar")
    elsewhere = Artifact(s3_root, manifest.artifact_id, ArtifactKind.DATASET, tmp_path / "elsewhere")
    folder = pickle.loads(pickle.dumps(elsewhere.ref)).open().folder()
    assert folder == tmp_path / "elsewhere" / manifest.artifact_id
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "index.json",
        "shards/0.tar",
    }
    remote.write_bytes("index.json", b"[]")
    with pytest.raises(DataIntegrityError, match=r"bytes differ from their digest: 'index.json'"):
        artifact.path("index.json")
    assert not (cache / manifest.artifact_id / "index.json").exists()


def test_large_artifacts_are_digested_in_threads_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name * 5)
    plain = build_manifest(tmp_path, ArtifactKind.DATASET, {})
    monkeypatch.setattr(artifacts, "_MANY_BYTES", 0)
    write_manifest(tmp_path, build_manifest(tmp_path, ArtifactKind.DATASET, {}))
    assert verify(Storage(str(tmp_path)), plain.artifact_id) == plain
    (tmp_path / "b").write_text("c" * 5)
    with pytest.raises(DataIntegrityError, match="'b'"):
        verify(Storage(str(tmp_path)))
