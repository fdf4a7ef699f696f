"""In a bucket that keeps versions a takedown deletes those as well: hidden bytes are not deleted bytes."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "channels"))

import s3fs
from channel_house import House

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InfrastructureError
from m4v.core.storage import Storage
from pipelines.ledger import Ledger
from pipelines.store import ArtifactStore
from pipelines.takedown import delete, versions
from pipelines.takedown.delete import _is_item, delete_artifact
from pipelines.takedown.versions import delete_versions


@pytest.fixture
def bucket(s3_server: str) -> str:
    """Keeps versions."""
    fs, name = s3fs.S3FileSystem(skip_instance_cache=True), f"kept-{uuid.uuid4().hex[:12]}"
    fs.mkdir(name)
    fs.call_s3("put_bucket_versioning", Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@pytest.fixture
def house(bucket: str, tmp_path: Path) -> Iterator[House]:
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        yield House(ledger, ArtifactStore(f"s3://{bucket}/team"), tmp_path / "staging")


def kept(uri: str) -> list[str]:
    return sorted(version.key.rsplit("/", 1)[-1] for version in versions.versions(uri))


def test_all_versions_of_a_deleted_artifact_go_and_no_other(house: House) -> None:
    gone, stays = house.checkpoint("one"), house.checkpoint("two")
    place = Storage(gone.uri)
    place.write_bytes("data", b"written again")
    place.delete("more")
    assert kept(gone.uri) == ["data", "data", "manifest.json", "more", "more"]  # of `more` the mark that hides it
    before = kept(stays.uri)
    delete_artifact(house.ledger, house.ledger.artifact(gone.artifact_id), "ada", "takedown")
    assert kept(gone.uri) == []
    assert house.ledger.artifact(gone.artifact_id).deletion == "done"
    assert kept(stays.uri) == before == ["data", "manifest.json", "more"]
    delete_artifact(house.ledger, house.ledger.artifact(gone.artifact_id), "ada", "takedown")  # again: nothing to do


def test_items_by_their_key_alone(bucket: str) -> None:
    place = Storage(f"s3://{bucket}/items/latents/v1/ab")
    for name in ("abc", "abc-57", "abcd"):
        place.write_bytes(name, b"first")
        place.write_bytes(name, b"second")
    place.delete("abc-57")  # garbage collection had it, and its bytes are still there
    assert delete_versions(place.uri, lambda name: _is_item(name, "abc")) == 5
    assert kept(place.uri) == ["abcd", "abcd"]
    assert place.read_bytes("abcd") == b"second"


def test_more_versions_than_one_page(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Storage(f"s3://{bucket}/many")
    for number in range(5):
        place.write_bytes("file", str(number).encode())
    monkeypatch.setattr(versions, "_PART", 2)
    assert delete_versions(place.uri) == 5
    assert kept(place.uri) == []


def test_a_kill_between_hiding_and_deleting_is_made_good(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    one = house.publish(ArtifactKind.DATASET, "one")
    house.ledger.import_artifact(one)
    row = house.ledger.artifact(one.artifact_id)

    def killed(_: str) -> int:
        raise InfrastructureError("the bucket does not let go")

    monkeypatch.setattr(delete, "delete_versions", killed)
    with pytest.raises(InfrastructureError):
        delete_artifact(house.ledger, row, "ada", "takedown")
    assert kept(one.uri) != []
    assert house.ledger.artifact(one.artifact_id).deletion == "marked", "not said to be gone"
    monkeypatch.undo()
    delete_artifact(house.ledger, row, "ada", "takedown")
    assert kept(one.uri) == []


def test_other_stores_keep_none(s3_root: str, tmp_path: Path) -> None:
    Storage(s3_root).write_bytes("file", b"x")
    assert [*versions.versions(s3_root), *versions.versions(str(tmp_path))] == []
    assert delete_versions(s3_root) == delete_versions(str(tmp_path)) == 0
    assert Storage(s3_root).exists("file")
