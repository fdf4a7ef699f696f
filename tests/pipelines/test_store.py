"""Publishing, on a local disk and over HTTP on S3: once, again, after kills and through faults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from m4v.core.artifacts import MANIFEST, ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError
from m4v.core.stage import OutputResult
from m4v.core.storage import Storage
from pipelines.ledger import Ledger, NewRun
from pipelines.store import ArtifactStore

FILES = {"a.json": b"{}", "shards/000000.tar": b"x" * 5000, "shards/000001.tar": b"y" * 100, "z.bin": b""}


def stage(directory: Path, files: dict[str, bytes] = FILES, kind: ArtifactKind = ArtifactKind.DATASET) -> OutputResult:
    """What a stage process leaves: files, and the manifest last."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    manifest = build_manifest(directory, kind, {"files": len(files)})
    write_manifest(directory, manifest)
    return OutputResult(
        name="dataset", kind=kind, artifact_id=manifest.artifact_id, staging=str(directory),
        size_bytes=manifest.size_bytes, files=len(manifest.files),
    )  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    root = str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_root")
    return ArtifactStore(root)


def test_a_published_artifact_is_whole_and_in_its_place(store: ArtifactStore, tmp_path: Path) -> None:
    output = stage(tmp_path / "staging")
    record = store.publish(output)
    assert record.uri == f"{store.uri}/artifacts/dataset/{output.artifact_id[:2]}/{output.artifact_id}"
    assert (record.artifact_id, record.kind) == (output.artifact_id, ArtifactKind.DATASET)
    assert (record.size_bytes, record.files, record.summary) == (5102, 4, {"files": 4})
    place = store.open(output.artifact_id, ArtifactKind.DATASET)
    assert [f.path for f in place.list()] == sorted([*FILES, MANIFEST])
    assert {name: place.read_bytes(name) for name in FILES} == FILES
    assert store.verify(output.artifact_id).artifact_id == output.artifact_id
    assert list(store.list()) == [record]
    assert list(store.list(ArtifactKind.CLIPS)) == []
    assert not (tmp_path / "staging").exists()


def test_publishing_again_adopts(store: ArtifactStore, tmp_path: Path) -> None:
    output = stage(tmp_path / "one")
    first = store.publish(output)
    again = stage(tmp_path / "two")
    assert store.publish(again) == first
    assert not (tmp_path / "two").exists()
    assert store.publish(output) == first, "the staging is gone, as after a crash before the ledger row"
    assert len(list(store.list())) == 1


def test_damaged_staging_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    output = stage(tmp_path / "s")
    (tmp_path / "s/shards/000001.tar").write_bytes(b"Y" * 100)
    with pytest.raises(DataIntegrityError, match=r"bytes differ from the manifest: 'shards/000001.tar'"):
        store.publish(output)
    (tmp_path / "s/shards/000001.tar").write_bytes(b"y" * 100)
    (tmp_path / "s/extra").touch()
    with pytest.raises(DataIntegrityError, match="not in the manifest: 'extra'"):
        store.publish(output)
    (tmp_path / "s/extra").unlink()
    with pytest.raises(DataIntegrityError, match="another artifact"):
        store.publish(output.model_copy(update={"artifact_id": "0" * 64}))
    with pytest.raises(DataIntegrityError, match="staged output is dataset, not clips"):
        store.publish(output.model_copy(update={"kind": ArtifactKind.CLIPS}))
    assert list(store.list()) == []
    store.publish(output)


def test_staging_that_is_gone_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    output = stage(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(DataIntegrityError, match="staged output dataset is gone and the store has no copy"):
        store.publish(output)


def test_unfinished_writes_in_staging_are_left_behind(store: ArtifactStore, tmp_path: Path) -> None:
    output = stage(tmp_path / "s")
    (tmp_path / "s/shards/.000002.tar.0123.tmp").write_bytes(b"part of a write that was killed")
    record = store.publish(output)
    assert not any(".tmp" in p.name for p in tmp_path.rglob("*"))
    assert len(list(Storage(record.uri).list())) == 5


@pytest.mark.parametrize(
    "damage",
    ["no manifest", "half the files", "changed bytes", "cut manifest", "stray file"],
)
def test_what_is_damaged_in_the_store_is_replaced(store: ArtifactStore, tmp_path: Path, damage: str) -> None:
    record = store.publish(stage(tmp_path / "one"))
    place = Storage(record.uri)
    match damage:
        case "no manifest":
            place.delete(MANIFEST)
        case "half the files":
            place.delete(MANIFEST)
            place.delete("shards")
        case "changed bytes":
            place.write_bytes("shards/000000.tar", b"X" * 5000)
        case "cut manifest":
            place.write_bytes(MANIFEST, place.read_bytes(MANIFEST)[:40])
        case "stray file":
            place.write_bytes("shards/stray", b"")
    if damage in ("no manifest", "half the files"):
        with pytest.raises(InputError, match="store has no such dataset"):
            store.open(record.artifact_id, record.kind)
        assert list(store.list()) == []
    else:
        with pytest.raises(DataIntegrityError):
            store.verify(record.artifact_id)
    assert store.publish(stage(tmp_path / "two")) == record
    assert store.verify(record.artifact_id, deep=True).size_bytes == 5102
    assert [f.path for f in place.list()] == sorted([*FILES, MANIFEST])
    assert store.sweep(older_than_s=0) == 0


def test_a_shallow_check_sees_sizes_and_a_deep_one_bytes(store: ArtifactStore, tmp_path: Path) -> None:
    record = store.publish(stage(tmp_path / "s"))
    Storage(record.uri).write_bytes("shards/000001.tar", b"Y" * 100)
    store.verify(record.artifact_id, deep=False)
    with pytest.raises(DataIntegrityError, match="bytes differ"):
        store.verify(record.artifact_id, record.kind)
    Storage(record.uri).write_bytes("shards/000001.tar", b"")
    with pytest.raises(DataIntegrityError, match="size is 0, manifest says 100"):
        store.verify(record.artifact_id, deep=False)
    with pytest.raises(InputError, match="no such artifact: 'f"):
        store.verify("f" * 64)


def test_equal_bytes_of_two_kinds_lie_apart(store: ArtifactStore, tmp_path: Path) -> None:
    a = store.publish(stage(tmp_path / "a", kind=ArtifactKind.SCORES))
    b = store.publish(stage(tmp_path / "b", kind=ArtifactKind.REPORT))
    assert a.artifact_id == b.artifact_id
    assert a.uri != b.uri
    assert [r.kind for r in store.list()] == [ArtifactKind.REPORT, ArtifactKind.SCORES]


def test_a_damaged_manifest_does_not_hide_the_others(store: ArtifactStore, tmp_path: Path) -> None:
    good = store.publish(stage(tmp_path / "a"))
    bad = store.publish(stage(tmp_path / "b", {"f": b"other"}))
    Storage(bad.uri).write_bytes(MANIFEST, b"{}")
    assert list(store.list()) == [good]


def test_leftovers_are_swept_once_they_are_old(store: ArtifactStore, tmp_path: Path) -> None:
    kept = store.publish(stage(tmp_path / "a"))
    left = store.publish(stage(tmp_path / "b", {"f": b"other"}))
    Storage(left.uri).delete(MANIFEST)
    if store.storage.is_local:
        copy = Path(kept.uri).with_name(".copy.0123.tmp")
        shutil.copytree(kept.uri, copy)
    assert store.sweep() == 0, "a publish may be under way"
    time.sleep(1.1)  # S3 times are whole seconds
    assert store.sweep(older_than_s=1) == (2 if store.storage.is_local else 1)
    assert list(store.list()) == [kept]
    assert not Storage(left.uri).exists()
    assert store.verify(kept.artifact_id)


def test_staging_in_a_store_is_published_too(store: ArtifactStore, tmp_path: Path, s3_root: str) -> None:
    """A pod stages on S3; the orchestrator publishes from there."""
    output = stage(tmp_path / "s")
    staging = Storage(f"{s3_root}/staging/attempt/dataset")
    for name in [*FILES, MANIFEST]:
        staging.put_file(tmp_path / "s" / name, name)
    record = store.publish(output.model_copy(update={"staging": staging.uri}))
    assert store.verify(record.artifact_id)
    assert not staging.exists()


def test_staging_on_another_filesystem_is_copied_then_renamed(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    assert other.stat().st_dev != tmp_path.stat().st_dev, "the test needs two filesystems"
    directory = other / f"m4v-test-{os.getpid()}"
    try:
        store = ArtifactStore(str(tmp_path / "store"))
        record = store.publish(stage(directory))
        assert store.verify(record.artifact_id)
        assert not directory.exists()
        assert [p.name for p in Path(record.uri).parent.iterdir()] == [record.artifact_id]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_many_may_publish_the_same_bytes_at_once(store: ArtifactStore, tmp_path: Path) -> None:
    outputs = [stage(tmp_path / f"s{i}") for i in range(6)]
    records: list[object] = []

    def publish(output: OutputResult) -> None:
        for _ in range(5):  # the test's S3 server stumbles when one key is put twice at the same moment
            try:
                records.append(store.publish(output))
                return
            except InfrastructureError:
                time.sleep(0.05)

    threads = [threading.Thread(target=publish, args=(o,)) for o in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 6
    assert all(r == records[0] for r in records)
    store.verify(outputs[0].artifact_id)
    assert store.sweep(older_than_s=0) == 0


def test_a_disk_that_refuses_is_a_fault_and_may_work_later(tmp_path: Path) -> None:
    output = stage(tmp_path / "s")
    (tmp_path / "store").write_bytes(b"a file where the store should be")
    with pytest.raises(InfrastructureError, match="storage failed"):
        ArtifactStore(str(tmp_path / "store")).publish(output)
    (tmp_path / "store").unlink()
    ArtifactStore(str(tmp_path / "store")).publish(output)


PUBLISHER = """
import os, shutil, signal, sys
from pathlib import Path
from m4v.core.stage import OutputResult
from m4v.core.storage import Storage
from pipelines.ledger import Ledger, NewRun
from pipelines.store import ArtifactStore

staged, root, ledger_url, point, times = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
done = 0

def die_after(owner, name):
    original = getattr(owner, name)
    def dying(*args, **kwargs):
        global done
        result = original(*args, **kwargs)
        done += 1
        if done == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, dying)

if point == "put":
    die_after(Storage, "put_file")
elif point == "fetch":
    die_after(Storage, "fetch")
elif point == "rename":
    die_after(Path, "rename")
elif point == "delete":
    die_after(Storage, "delete")
output = OutputResult.model_validate_json(Path(staged).read_bytes())
record = ArtifactStore(root).publish(output)
if point == "published":
    os.kill(os.getpid(), signal.SIGKILL)
with Ledger.open(ledger_url) as ledger:
    claim = ledger.claim("key", "publisher")
    attempt = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
    run = NewRun(stage="encode", stage_version=1, stage_key="key", key_record={}, config={}, code_digest="c", seed=0)
    if point == "committing":
        from sqlalchemy import event
        event.listen(ledger._db.engine, "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    ledger.commit_run(claim, attempt, run, [], {"dataset": record})
"""


def publish_in_child(output: OutputResult, store: ArtifactStore, ledger: Path, point: str, times: int = 1) -> int:
    staged = ledger.with_name("output.json")
    staged.write_text(output.model_dump_json())
    arguments = [str(staged), store.uri, str(ledger), point, str(times)]
    return subprocess.run([sys.executable, "-c", PUBLISHER, *arguments], timeout=300, check=False).returncode


LOCAL_KILLS = [("rename", 1), ("delete", 1), ("published", 1), ("committing", 1)]
COPY_KILLS = [("fetch", 1), ("fetch", 4), ("fetch", 5)]  # four files, then the manifest
S3_KILLS = [("put", 1), ("put", 4), ("put", 5), ("published", 1), ("committing", 1)]


def check_kill_and_rerun(store: ArtifactStore, output: OutputResult, ledger_path: Path, point: str, times: int) -> None:
    assert publish_in_child(output, store, ledger_path, point, times) == -signal.SIGKILL
    for record in store.list():  # what can be seen is whole
        store.verify(record.artifact_id)
    with Ledger.open(str(ledger_path)) as ledger:
        assert ledger.find_run("key") is None
    with Ledger.open(str(ledger_path)) as ledger:  # the re-run: publish, then commit
        record = store.publish(output)
        claim = ledger.claim("key", "second")
        attempt = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
        run = NewRun(
            stage="encode", stage_version=1, stage_key="key", key_record={}, config={}, code_digest="c", seed=0
        )
        ledger.commit_run(claim, attempt, run, [], {"dataset": record})
    assert [r.artifact_id for r in store.list()] == [output.artifact_id]
    store.verify(output.artifact_id)
    with Ledger.open(str(ledger_path)) as ledger:
        found = ledger.find_run("key")
        assert found is not None
        assert found.output("dataset").artifact_id == output.artifact_id
        assert ledger.artifact(output.artifact_id).uri == store.place(output.artifact_id, output.kind).uri
        assert ledger.verify_chain().ok
    assert not Path(output.staging).exists()


@pytest.mark.parametrize(("point", "times"), LOCAL_KILLS)
def test_a_kill_while_publishing_locally(tmp_path: Path, point: str, times: int) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    check_kill_and_rerun(store, stage(tmp_path / "staging"), tmp_path / "ledger.sqlite", point, times)
    assert store.sweep(older_than_s=0) == 0


@pytest.mark.parametrize(("point", "times"), COPY_KILLS)
def test_a_kill_while_copying_between_filesystems(tmp_path: Path, point: str, times: int) -> None:
    directory = Path("/dev/shm") / f"m4v-test-{os.getpid()}-{times}"
    try:
        store = ArtifactStore(str(tmp_path / "store"))
        check_kill_and_rerun(store, stage(directory), tmp_path / "ledger.sqlite", point, times)
        assert store.sweep(older_than_s=0) == 1, "the copy that was cut off"
        store.verify(next(store.list()).artifact_id)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(("point", "times"), S3_KILLS)
def test_a_kill_while_publishing_to_s3(s3_root: str, tmp_path: Path, point: str, times: int) -> None:
    store = ArtifactStore(s3_root)
    check_kill_and_rerun(store, stage(tmp_path / "staging"), tmp_path / "ledger.sqlite", point, times)
    assert store.sweep(older_than_s=0) == 0


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to an S3 server; `fault` decides per request what goes wrong instead."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.upstream = upstream
        self.fault: dict[str, int | str] = {}
        self.puts: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT":
            self.server.puts.append(self.path)
            fault = self.server.fault
            if fault.get("from", 0) and len(self.server.puts) >= int(fault["from"]):
                if fault["how"] == "cut":
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer(int(fault["how"]), {}, b"<Error><Code>InternalError</Code></Error>")
                return
        request = Request(self.server.upstream + self.path, body or None, dict(self.headers), method=self.command)
        try:
            with urlopen(request) as answer:
                self._answer(answer.status, dict(answer.headers), answer.read())
        except HTTPError as error:
            self._answer(error.code, dict(error.headers), error.read())

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    server = FaultyProxy(s3_server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()


@pytest.mark.parametrize("how", [500, 503, 403, "cut"])
def test_an_upload_that_fails_is_a_fault_and_running_again_completes(
    proxy: FaultyProxy, s3_root: str, tmp_path: Path, how: int | str
) -> None:
    output = stage(tmp_path / "staging")
    proxy.fault = {"from": 3, "how": how}
    with pytest.raises(InfrastructureError, match="storage failed"):
        ArtifactStore(s3_root).publish(output)
    proxy.fault = {}
    store = ArtifactStore(s3_root)
    assert list(store.list()) == []
    assert (tmp_path / "staging" / MANIFEST).exists(), "nothing staged is lost"
    proxy.puts.clear()
    record = store.publish(output)
    store.verify(record.artifact_id)
    uploaded = [p.rsplit("/", 1)[-1].split("?")[0] for p in proxy.puts]
    assert uploaded == ["000001.tar", "z.bin", MANIFEST], "what had arrived is not sent again"
