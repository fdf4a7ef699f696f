"""Reading a dataset in a remote store: whole shards while the cache has room, single members of the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from training_helpers import clips, write_dataset

from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.shard_index import INDEX, MEMBERS, iterate, member, read_index
from m4v.core.storage import Storage
from training.shard_source import RemoteShards, cache_budget, member_reader

SHARDS = ("000000.tar", "000001.tar", "000002.tar")


@pytest.fixture
def remote(tmp_path: Path, s3_root: str) -> Artifact:
    """A dataset of three shards in a bucket; its folder is `tmp_path/local`."""
    local = tmp_path / "local"
    key = write_dataset(local, clips(videos=4, images=2), per_shard=2)
    store = Storage(f"{s3_root}/dataset")
    for path in (p for p in local.rglob("*") if p.is_file()):
        store.put_file(path, path.relative_to(local).as_posix())
    return Artifact(store.uri, key, ArtifactKind.DATASET, tmp_path / "cache")


def test_members_come_from_copies_and_by_range_within_the_budget(remote: Artifact, tmp_path: Path) -> None:
    size = remote.manifest.entry("shards/000000.tar").size_bytes
    reader = RemoteShards(remote, size)
    assert reader.cached == {SHARDS[0]}
    local = member_reader(Artifact(str(tmp_path / "local"), remote.id, ArtifactKind.DATASET, tmp_path / "unused"))
    places = [member(row, name) for row in iterate(read_index(tmp_path / "local" / INDEX)) for name in MEMBERS]
    assert {p.shard for p in places} == set(SHARDS)
    found: list[dict[int, bytes]] = [{}, {}]

    def read(thread: int) -> None:
        for number, place in enumerate(places):
            found[thread][number] = reader.read(place)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {number: local.read(place) for number, place in enumerate(places)}
    assert found == [expected, expected]
    copies = list((tmp_path / "cache").rglob("*.tar"))
    assert [p.name for p in copies] == [SHARDS[0]]
    assert sum(p.stat().st_size for p in copies) <= size


def test_bytes_that_changed_in_the_store_are_refused(remote: Artifact, tmp_path: Path) -> None:
    place = next(
        member(row, "latent") for row in iterate(read_index(tmp_path / "local" / INDEX)) if row["shard"] == SHARDS[2]
    )
    data = bytearray((tmp_path / "local" / "shards" / SHARDS[2]).read_bytes())
    data[place.offset] ^= 1
    remote.storage.write_bytes(f"shards/{SHARDS[2]}", bytes(data))
    with pytest.raises(DataIntegrityError, match="differs"):
        RemoteShards(remote, 0).read(place, "sample.latent")


def test_the_budget_is_a_setting_or_half_the_disk(remote: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M4V_SHARD_CACHE_GB", raising=False)
    assert cache_budget(remote) > 0
    monkeypatch.setenv("M4V_SHARD_CACHE_GB", "0.002")
    assert cache_budget(remote) == 2_000_000
    reader = member_reader(remote)
    assert isinstance(reader, RemoteShards)
    assert reader.cached == set(SHARDS)
    monkeypatch.setenv("M4V_SHARD_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="gigabytes"):
        cache_budget(remote)
