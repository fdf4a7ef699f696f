"""Storage: the same behaviour on a local directory and on S3, and atomic writes."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from m4v.core.canonical import digest_bytes
from m4v.core.errors import ConfigError, DataIntegrityError, InfrastructureError, InputError
from m4v.core.storage import Storage, is_temporary, storage_faults, temporary_beside, write_atomic


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_root"))


def test_bytes_come_back(storage: Storage) -> None:
    assert not storage.exists("a/b.bin")
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"twotwo")
    assert storage.exists("a/b.bin")
    assert storage.exists("a")
    assert storage.exists()
    assert storage.read_bytes("a/b.bin") == b"twotwo"
    assert storage.digest("a/b.bin") == digest_bytes(b"twotwo")
    assert list(storage.chunks("a/b.bin", 4)) == [b"twot", b"wo"]
    with storage.open("a/b.bin") as stream:
        stream.seek(3)
        assert stream.read() == b"two"
    assert abs(storage.modified_at("a/b.bin") - time.time()) < 60


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write_bytes("empty", b"")
    assert storage.read_bytes("empty") == b""
    assert list(storage.list()) == [("empty", 0)]


def test_missing_files_are_the_callers_error(storage: Storage) -> None:
    storage.write_bytes("a/b", b"x")
    for call in (storage.open, storage.read_bytes, storage.digest, storage.modified_at):
        for path in ("nothing", "a/b/c"):
            with pytest.raises(InputError, match=f"file does not exist: '{path}'"):
                call(path)
    with pytest.raises(InputError, match="file does not exist"):
        storage.read_bytes("a")


def test_listing_is_sorted_and_below_the_path(storage: Storage) -> None:
    for name in ("b/2", "a", "b/c/1", "b/10", "bb/x"):
        storage.write_bytes(name, name.encode())
    assert list(storage.list()) == [("a", 1), ("b/10", 4), ("b/2", 3), ("b/c/1", 5), ("bb/x", 4)]
    assert [f.path for f in storage.list("b")] == ["b/10", "b/2", "b/c/1"]
    assert storage.directories() == ["b", "bb"]
    assert storage.directories("b") == ["c"]
    assert list(storage.list("nothing")) == []
    assert storage.directories("nothing") == []
    assert storage.files() == [("a", 1)]
    assert storage.files("b") == [("b/10", 4), ("b/2", 3)]
    assert storage.files("b", limit=1) == [("b/10", 4)]
    assert storage.files("nothing") == []
    child = storage.child("b")
    assert [f.path for f in child.list()] == ["10", "2", "c/1"]
    assert child.read_bytes("c/1") == b"b/c/1"


def test_deleting_files_and_trees(storage: Storage) -> None:
    for name in ("t/a", "t/b/c", "keep"):
        storage.write_bytes(name, b"x")
    storage.delete("t/a")
    assert [f.path for f in storage.list()] == ["keep", "t/b/c"]
    storage.delete("t")
    storage.delete("t")
    storage.delete("never was")
    assert [f.path for f in storage.list()] == ["keep"]
    storage.child("keep-not").delete()
    storage.delete()
    assert list(storage.list()) == []


def test_files_go_in_and_out(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(3_000_000))
    storage.put_file(source, "deep/er/copy.bin")
    digest = digest_bytes(source.read_bytes())
    assert storage.digest("deep/er/copy.bin") == digest
    target = tmp_path / "cache" / "x" / "copy.bin"
    assert storage.fetch("deep/er/copy.bin", target, digest) == target
    assert target.read_bytes() == source.read_bytes()
    before = target.stat().st_mtime_ns
    storage.fetch("deep/er/copy.bin", target, digest)
    assert target.stat().st_mtime_ns == before, "a good copy is kept"
    target.write_bytes(b"damaged")
    storage.fetch("deep/er/copy.bin", target, digest)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(InputError, match="file does not exist"):
        storage.put_file(tmp_path / "nothing", "x")
    with pytest.raises(InputError, match="file does not exist"):
        storage.fetch("nothing", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_a_copy_with_other_bytes_is_not_kept(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("f", b"changed")
    with pytest.raises(DataIntegrityError, match="bytes differ from their digest: 'f'"):
        storage.fetch("f", tmp_path / "out" / "f", digest_bytes(b"original"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("path", ["../x", "a/../b", "/etc/passwd", "a\\b", "a\0b", "./a", "a//b", "a/", "."])
def test_paths_do_not_lead_out(storage: Storage, path: str) -> None:
    for call in (storage.exists, storage.open, storage.delete, storage.child, lambda p: storage.write_bytes(p, b"")):
        with pytest.raises(InputError, match="not a plain relative path"):
            call(path)


def test_storages_are_carried_into_children(storage: Storage) -> None:
    storage.write_bytes("from", b"parent")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("from") == b"parent"
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a client that waits for its parent's threads would hang
        try:
            storage.write_bytes("child", storage.read_bytes("from"))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert storage.read_bytes("child") == b"parent"


def test_what_another_process_writes_is_seen_at_once(storage: Storage) -> None:
    storage.write_bytes("a", b"1")
    assert len(list(storage.list())) == 1
    Storage(storage.uri).write_bytes("b", b"2")
    assert [f.path for f in storage.list()] == ["a", "b"]
    assert storage.exists("b")


def test_local_uris_have_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("x/y").uri == Storage(f"file://{tmp_path}/x/y/").uri == Storage("~/x/y").uri == f"{tmp_path}/x/y"
    assert Storage("x").local_root == tmp_path / "x"


def test_a_remote_root_has_no_directory(s3_root: str) -> None:
    remote = Storage(s3_root + "/")
    assert not remote.is_local
    assert remote.uri == s3_root
    with pytest.raises(InputError, match="local directory is needed"):
        _ = remote.local_root


def test_unknown_kinds_of_storage_are_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot be used.*'nfs4://x/y'"):
        Storage("nfs4://x/y")


def test_a_bucket_that_is_not_there_is_a_fault(s3_server: str) -> None:
    with pytest.raises(InfrastructureError, match="storage failed"):
        Storage("s3://no-such-bucket/x").write_bytes("f", b"x")


def test_an_endpoint_that_is_not_there_is_a_fault(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(InfrastructureError, match="storage failed"):
            Storage(s3_root).read_bytes("f")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_disk_that_refuses_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match=r"storage failed: (NotADirectoryError|FileExistsError)"):
        Storage(str(tmp_path / "file")).write_bytes("x", b"")
    with pytest.raises(InfrastructureError, match="No space left"), storage_faults("/dev/full"):
        Path("/dev/full").write_bytes(b"x")


def test_a_failed_write_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "d", b"a directory is in the way")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    """A writer is killed over and over while it replaces a file; every version read is whole."""
    path = tmp_path / "f"
    versions = {bytes([i]) * 200_000 for i in (1, 2)}
    write_atomic(path, next(iter(versions)))
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            while True:
                for version in versions:
                    write_atomic(path, version)
        until = time.monotonic() + 0.03
        while time.monotonic() < until:
            assert path.read_bytes() in versions
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert path.read_bytes() in versions
    assert [f.path for f in Storage(str(tmp_path)).list()] == ["f"], "temporaries of the killed are not listed"


def test_temporaries_are_known_by_name() -> None:
    temporary = temporary_beside(Path("a/model.safetensors"))
    assert temporary.parent == Path("a")
    assert is_temporary(temporary.name)
    assert temporary != temporary_beside(Path("a/model.safetensors"))
    assert not any(is_temporary(n) for n in ("model.safetensors", ".hidden", "x.tmp"))
