"""Files of artifacts over HTTP: byte ranges from a local and a remote store, and no way out of an artifact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from served_home import ServedHome, build

from m4v.core.storage import Storage
from pipelines.ledger import Ledger
from pipelines.web.app import create_app, streams
from pipelines.workspace import Workspace


@pytest.fixture(scope="module", params=["local", "s3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedHome:
    store = request.getfixturevalue("s3_store") if request.param == "s3" else None
    return build(tmp_path_factory.mktemp("files") / "home", store)


@pytest.fixture(scope="module")
def s3_store(s3_server: str) -> str:
    return "s3://m4v-tests/served"


@pytest.fixture(scope="module")
def client(served: ServedHome) -> Iterator[TestClient]:
    with TestClient(create_app(served.workspace)) as client:
        yield client


@pytest.fixture(scope="module")
def weights(served: ServedHome) -> str:
    return f"/artifacts/{served.artifact('train.57f')}/files/model.safetensors"


WHOLE = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        (None, 200, 0, 10239),
        ("bytes=0-", 206, 0, 10239),
        ("bytes=100-199", 206, 100, 199),
        ("bytes=10000-99999", 206, 10000, 10239),
        ("bytes=-40", 206, 10200, 10239),
        ("bytes=-99999", 206, 0, 10239),
        ("bytes=0-1,5-9", 200, 0, 10239),  # several at once: the whole, as the protocol allows
        ("lines=1-2", 200, 0, 10239),
    ],
)
def test_ranges(client: TestClient, weights: str, asked: str | None, status: int, first: int, last: int) -> None:
    answer = client.get(weights, headers={"range": asked} if asked else {})
    assert answer.status_code == status
    assert answer.content == WHOLE[first : last + 1]
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.headers.get("content-range") == (f"bytes {first}-{last}/10240" if status == 206 else None)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=20-10", "bytes=-0"])
def test_ranges_outside_are_refused(client: TestClient, weights: str, asked: str) -> None:
    answer = client.get(weights, headers={"range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */10240"


def test_a_copy_that_is_still_good_is_not_sent_again(client: TestClient, weights: str) -> None:
    first = client.get(weights)
    assert "immutable" in first.headers["cache-control"]
    again = client.get(weights, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(weights, headers={"range": "bytes=0-9", "if-range": '"of another file"'})
    assert (other.status_code, len(other.content)) == (200, 10240)


def test_head_tells_the_size_and_sends_nothing(client: TestClient, weights: str) -> None:
    answer = client.head(weights)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "10240"
    assert answer.headers["accept-ranges"] == "bytes"


def test_media_are_shown_and_unknown_files_downloaded(client: TestClient, served: ServedHome, weights: str) -> None:
    video = client.get(f"/artifacts/{served.artifact('generate')}/files/videos/0003.mp4")
    assert video.headers["content-type"] == "video/mp4"
    assert "content-disposition" not in video.headers
    assert client.get(weights).headers["content-disposition"] == 'attachment; filename="model.safetensors"'


def test_a_report_may_run_its_own_script_and_nothing_of_ours(client: TestClient, served: ServedHome) -> None:
    answer = client.get(f"/artifacts/{served.artifact('report')}/files/index.html")
    assert "report of the run" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts")  # without allow-same-origin: it is no page of this server
    assert "allow-same-origin" not in policy
    assert "'self'" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "manifest.json", "../../../../ledger.db", "%2e%2e/%2e%2e/ledger.db", "..%2f..%2fledger.db", "/etc/passwd",
        "%2Fetc%2Fpasswd", "videos%2f..%2fsamples.json", "samples.json%00", "samples.json/", "", "....//ledger.db",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_an_artifact(client: TestClient, served: ServedHome, path: str) -> None:
    answer = client.get(f"/artifacts/{served.artifact('generate')}/files/{path}", follow_redirects=False)
    assert answer.status_code == 404
    assert b"SQLite format" not in answer.content


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> ServedHome:
    return build(tmp_path_factory.mktemp("spoiled") / "home")


def test_a_withdrawn_artifact_shows_no_files(spoiled: ServedHome) -> None:
    record = spoiled.made["generate"][1]
    with Ledger.open(spoiled.workspace.ledger_url) as ledger:
        ledger.open_takedown(
            {"clips": []}, reason="asked to go", requested_by="ann", policy={}, blocks={}, clips=[],
            artifacts=[(record.artifact_id, record.kind, "holds the clip")],
        )  # fmt: skip
    with TestClient(create_app(spoiled.workspace)) as client:
        page = client.get(f"/artifacts/{record.artifact_id}").text
        assert "Withdrawn by takedown" in page
        assert "<video" not in page
        answer = client.get(f"/artifacts/{record.artifact_id}/files/videos/0003.mp4")
        assert answer.status_code == 404
        assert "withdrawn" in answer.text


def test_a_large_file_is_sent_in_pieces(spoiled: ServedHome, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    opened = Storage.open

    def watched(self: Storage, path: str):  # type: ignore[no-untyped-def]
        stream = opened(self, path)
        read = stream.read

        class Watched:
            def __enter__(self):  # type: ignore[no-untyped-def]
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def seek(self, place: int) -> int:
                return stream.seek(place)

            def read(self, count: int = -1) -> bytes:
                reads.append(count)
                return read(count)

        return Watched()

    monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)
    with TestClient(create_app(Workspace.open(spoiled.workspace.home))) as client:
        address = f"/artifacts/{spoiled.artifact('train.57f')}/files/model.safetensors"
        client.get(address)
        monkeypatch.setattr(Storage, "open", watched)
        assert client.get(address).content == WHOLE
    assert max(reads) <= 1000
    assert len(reads) >= 10
