"""Storage, artifacts, shards and items over S3 through a proxy that breaks answers: everything ends right or as a
fault that may be tried again (exit 30), and nothing is ever half there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FAULTS, FaultProxy, always, by_chance, once, proxying

from dataprep.shards import Sample, ShardWriter, verify_shards
from m4v.core import remote
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind, build_manifest, verify, write_manifest
from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError, ExitClass, InfrastructureError
from m4v.core.items import ItemStore
from m4v.core.remote import StoredChecksumError
from m4v.core.rng import generator
from m4v.core.shard_index import MEMBERS
from m4v.core.stage import OutputResult
from m4v.core.storage import Storage
from pipelines.store import ArtifactStore

# What no checksum is known of cannot be told from what was meant.
HONEST = tuple(f for f in FAULTS if not f.startswith("garble") and f != "slow")
PART = 5 << 20  # the smallest part of a multipart upload
QUICK_S, PATIENT_S = 0.8, 60.0  # how long the client waits for bytes: where an answer hangs, and elsewhere


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    """The process's S3 endpoint is the proxy; the client library's own tries are few."""
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with proxying(s3_server) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "read_timeout", PATIENT_S)
        patch.setattr(remote, "_BACKOFF_S", 0.01)
        patch.setattr(remote, "_PART_BYTES", PART)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(proxy: FaultProxy, s3_root: str, request: pytest.FixtureRequest) -> Iterator[Storage]:
    """Only where an answer hangs is the client's patience short: a machine that stalls is no fault of the network."""
    import s3fs

    proxy.clear()
    with pytest.MonkeyPatch.context() as patch:
        hangs = "fault" in request.fixturenames and request.getfixturevalue("fault") == "hang"
        if hangs:
            patch.setattr(s3fs.S3FileSystem, "read_timeout", QUICK_S)
            s3fs.S3FileSystem.clear_instance_cache()
        yield Storage(s3_root)
    if hangs:
        s3fs.S3FileSystem.clear_instance_cache()
    proxy.clear()


def noise(size: int, seed: int = 0) -> bytes:
    return generator(seed, "bytes").bytes(size)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "slow"])
def test_one_fault_in_writing_is_passed_over(proxy: FaultProxy, store: Storage, fault: str, tmp_path: Path) -> None:
    small, large = noise(5000), noise(PART + 300_000, 1)
    proxy.plan = once(fault, "PUT", "small")
    store.write_bytes("small", small)
    (tmp_path / "large").write_bytes(large)
    steps = [once(fault, *step) for step in (("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId="))]
    proxy.plan = lambda *request: next((f for step in steps if (f := step(*request))), None)
    store.put_file(tmp_path / "large", "large")
    assert sum(f == fault for _, _, f in proxy.requests) == 4, "one at each step"
    proxy.clear()
    assert store.read_bytes("small") == small
    assert [f.path for f in store.list()] == ["large", "small"]
    assert store.digest("large") == digest_bytes(large)


@pytest.mark.parametrize("fault", HONEST)
def test_one_fault_in_reading_is_passed_over(proxy: FaultProxy, store: Storage, fault: str, tmp_path: Path) -> None:
    data = noise(900_000, 2)
    store.write_bytes("d/file", data)
    store.write_bytes("d/other", b"")
    for method in ("HEAD", "GET"):
        proxy.plan = once(fault, method, "file")
        assert store.read_bytes("d/file") == data
        proxy.plan = once(fault, method, "file")
        store.fetch("d/file", tmp_path / f"{fault}-{method}", digest_bytes(data))
    proxy.plan = once(fault, "GET", "list-type")
    assert [f.size_bytes for f in store.list("d")] == [len(data), 0]
    proxy.plan = once(fault, "GET", "list-type")
    assert store.directories() == ["d"]
    proxy.plan = once(fault, "HEAD")
    assert store.exists("d/file")
    proxy.plan = once(fault, "HEAD")
    assert not store.exists("d/none")
    proxy.plan = once(fault, "GET", "file")
    with store.open("d/file") as stream:
        stream.seek(-100, 2)
        assert stream.read() == data[-100:]
    proxy.plan = once(fault, "POST", "delete")
    store.delete("d")
    proxy.clear()
    assert list(store.list()) == []


@pytest.mark.parametrize("fault", ["lose", "500", "short"])
def test_faults_that_last_are_to_be_tried_again_later(proxy: FaultProxy, store: Storage, fault: str) -> None:
    store.write_bytes("file", noise(2000))
    proxy.plan = always(fault, "GET", "PUT", "POST") if fault == "short" else always(fault)
    calls = [lambda: store.read_bytes("file"), lambda: list(store.list())]
    if fault != "short":  # the answer to a PUT has no body to lose
        calls += [lambda: store.write_bytes("new", b"new"), lambda: store.exists("file"), lambda: store.delete("file")]
    for call in calls:
        with pytest.raises(InfrastructureError) as caught:
            call()
        assert caught.value.exit_class is ExitClass.INFRASTRUCTURE
    proxy.clear()
    assert store.read_bytes("new" if fault == "lose" else "file") in (noise(2000), b"new")


def test_garbled_bytes_are_never_taken(proxy: FaultProxy, store: Storage, tmp_path: Path) -> None:
    data = noise(100_000, 3)
    store.write_bytes("file", data)
    target = tmp_path / "copy"
    proxy.plan = once("garble_answer", "GET", "file")
    store.fetch("file", target, digest_bytes(data))
    assert target.read_bytes() == data
    target.unlink()
    proxy.plan = always("garble_answer", "GET")
    with pytest.raises((DataIntegrityError, InfrastructureError)):  # whoever notices first: digest, or client's CRC
        store.fetch("file", target, digest_bytes(data))
    assert list(tmp_path.iterdir()) == []
    proxy.plan = always("garble_request", "PUT")
    with pytest.raises(InfrastructureError):
        store.write_bytes("file", data)
    with pytest.raises(InfrastructureError):
        store.write_bytes("large", noise(PART + 1))
    proxy.clear()
    assert not store.exists("large"), "an upload with a wrong part is not completed"


def test_an_object_that_changes_while_it_is_read_is_no_mixture(store: Storage) -> None:
    store.write_bytes("file", b"a" * 3_000_000)
    with store.open("file") as stream:
        assert stream.read(10) == b"a" * 10
        store.write_bytes("file", b"b" * 3_000_000)
        stream.seek(2_000_000)
        with pytest.raises(InfrastructureError):
            stream.read(10)


def staged(directory: Path, seed: int = 0) -> OutputResult:
    """A staged dataset: shards with their samples, and an index."""
    samples = [Sample(f"s{n:03}", "g", {m: noise(3000 + n, 100 * seed + n) for m in MEMBERS}) for n in range(12)]
    with ShardWriter(directory / "shards", samples=4, size_bytes=1 << 20) as writer:
        places = {s.key: writer.add(s) for s in samples}
    (directory / "index.json").write_text(str(sorted(places)))
    manifest = build_manifest(directory, ArtifactKind.DATASET, {"samples": 12})
    write_manifest(directory, manifest)
    return OutputResult(
        name="dataset", kind=ArtifactKind.DATASET, artifact_id=manifest.artifact_id, staging=str(directory),
        size_bytes=manifest.size_bytes, files=len(manifest.files),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_publishing_through_a_storm(proxy: FaultProxy, store: Storage, tmp_path: Path, seed: int) -> None:
    """A third of all requests goes wrong, also by garbled bytes: what is published is right all the same."""
    faults = tuple(f for f in FAULTS if f not in ("hang", "garble_answer"))
    output = staged(tmp_path / "staging", seed)
    proxy.plan = by_chance(seed, 0.35, faults)
    record = ArtifactStore(store.uri).publish(output)
    broken = [fault for _, _, fault in proxy.requests if fault]
    assert broken
    folder = Artifact(record.uri, record.artifact_id, record.kind, tmp_path / "cache").folder()
    proxy.clear()
    verify(Storage(record.uri), record.artifact_id, deep=True)
    assert sorted(p.name for p in (folder / "shards").iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize(
    ("fault", "begin"),
    [("refuse", 1), ("503", 5), ("garble_request", 1), ("garble_request", 5)],
)
def test_publishing_that_fails_leaves_nothing_to_be_seen(
    proxy: FaultProxy, store: Storage, tmp_path: Path, fault: str, begin: int
) -> None:
    output = staged(tmp_path / "staging")
    proxy.plan = always(fault, "PUT", begin=begin)
    artifacts = ArtifactStore(store.uri)
    with pytest.raises(InfrastructureError):
        artifacts.publish(output)
    proxy.clear()
    assert list(artifacts.list()) == []
    assert not any(f.path.endswith(MANIFEST) for f in store.list())
    record = artifacts.publish(output)
    verify(Storage(record.uri), record.artifact_id, deep=True)


def test_an_artifact_that_is_damaged_where_it_lies_is_replaced(
    proxy: FaultProxy, store: Storage, tmp_path: Path
) -> None:
    import s3fs

    artifacts = ArtifactStore(store.uri)
    record = artifacts.publish(staged(tmp_path / "first"))
    victim = f"{record.uri.removeprefix('s3://')}/index.json"
    proxy.plan = once("garble_request", "PUT", "index.json")  # the store keeps other bytes than it has the checksum of
    s3fs.S3FileSystem().pipe_file(victim, Storage(record.uri).read_bytes("index.json"))
    proxy.clear()
    with pytest.raises(StoredChecksumError):
        verify(Storage(record.uri), record.artifact_id, deep=True)
    assert artifacts.publish(staged(tmp_path / "again")).artifact_id == record.artifact_id
    verify(Storage(record.uri), record.artifact_id, deep=True)


def test_items_are_right_or_missing(proxy: FaultProxy, store: Storage) -> None:
    items = ItemStore(store)
    proxy.plan = by_chance(7, 0.3, tuple(f for f in FAULTS if f != "hang"))
    payloads = {digest_bytes(f"{n}".encode()): noise(2000 + n, n) for n in range(8)}
    for key, payload in payloads.items():
        items.put(key, payload)
    for key, payload in payloads.items():
        assert items.get(key) in (payload, None), "garbled on its way: a miss, never another payload"
    proxy.clear()
    assert all(items.get(key) == payload for key, payload in payloads.items())


def test_shards_read_back_from_a_bad_network(proxy: FaultProxy, store: Storage, tmp_path: Path) -> None:
    samples = [Sample(f"s{n}", "g", {m: noise(40_000, n) for m in MEMBERS}) for n in range(6)]
    with ShardWriter(tmp_path / "shards", samples=3, size_bytes=1 << 20) as writer:
        refs = {s.key: writer.add(s) for s in samples}
    for name in writer.shards:
        store.put_file(tmp_path / "shards" / name, name)
    proxy.plan = by_chance(3, 0.4, ("refuse", "lose", "500", "503", "truncate", "short", "slow"))
    for sample in samples:
        for member, ref in refs[sample.key].items():
            with store.open(ref.shard) as stream:
                stream.seek(ref.offset)
                assert stream.read(ref.size_bytes) == sample.members[member]
    rows = [
        {"sample_id": key, **{f"{m}_{field}": getattr(r, name) for m, r in found.items()
         for field, name in (("offset", "offset"), ("size", "size_bytes"), ("sha256", "sha256"))},
         "shard": found["meta"].shard}
        for key, found in refs.items()
    ]  # fmt: skip
    for name in writer.shards:
        store.fetch(name, tmp_path / "back" / name)
    verify_shards(tmp_path / "back", rows)
