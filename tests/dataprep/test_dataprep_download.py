"""The downloader against a server that misbehaves: what comes is whole and right, or failed with its reason."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from download_server import (
    Rule,
    Site,
    answer,
    chunked,
    cut,
    hang,
    redirect,
    serving,
    slow,
    status,
    video,
)  # fmt: skip

from dataprep.download.config import DownloadConfig
from dataprep.download.outcome import WantedFile
from dataprep.download.run import Report, download
from dataprep.download.state import FAILURES, FOLDER, DownloadState, state_digest
from m4v.core.errors import Drained, InfrastructureError
from m4v.core.storage import Storage

HTML = b"<!DOCTYPE html><html><body>" + b"Too many requests " * 100


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def site(server: Site) -> Site:
    server.files.clear(), server.etags.clear(), server.rules.clear(), server.seen.clear()
    server.ranges, server.most_active = True, 0
    return server


def config(**settings: object) -> DownloadConfig:
    quick = {"allow": ("127.0.0.1",), "backoff_s": 0.01, "host_rate_per_s": None,
             "max_unreachable": 1.0, "attempts": 3}  # fmt: skip
    return DownloadConfig.model_validate({**quick, **settings})


class Collection:
    """A local collection and the wanted files of one site."""

    def __init__(self, root: Path) -> None:
        self.storage = Storage(str(root / "collection"))
        self.cache = root / "cache"

    def fetch(
        self, urls: dict[str, str], *, again: bool = False, tick=lambda report: None, claims=None, **settings
    ) -> Report:
        wanted = [WantedFile(path, url, "video", claims or {}) for path, url in urls.items()]
        with DownloadState(self.storage, self.cache) as state:
            try:
                return download(config(**settings), wanted, state, again=again, tick=tick)
            except InfrastructureError:
                raise

    def bytes(self, path: str) -> bytes:
        return self.storage.read_bytes(path)

    def failures(self) -> dict[str, tuple[str, bool]]:
        rows = pq.read_table(self.storage.local_root / FOLDER / FAILURES).to_pylist()
        return {r["path"]: (r["reason"], r["again"]) for r in rows}


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path)


def test_files_land_where_the_tables_expect_them(site: Site, collection: Collection) -> None:
    data = {f"videos/p{n % 3}/{n}.mp4": video(3000 + n, n) for n in range(40)}
    urls = {path: site.put(path, body) for path, body in data.items()}
    report = collection.fetch(urls, concurrency=8, per_host=3)
    assert (report.wanted, report.fetched, report.done, dict(report.failed)) == (40, 40, 40, {})
    assert report.received_bytes == sum(map(len, data.values()))
    assert all(collection.bytes(path) == body for path, body in data.items())
    assert len(site.seen) == 40
    assert site.most_active <= 3
    assert {f.path for f in collection.storage.list("videos")} == set(data), "no partial file among them"


FAULTS: list[tuple[str, list[Rule], int]] = [
    ("500 then ok", [status(500)], 2),
    ("503 twice then ok", [status(503), status(503)], 3),
    ("truncated", [cut(1500)], 2),
    ("reset in the body", [cut(2500, reset=True)], 2),
    ("reset before the body", [cut(0, reset=True)], 2),
    ("hangs", [hang], 2),
    ("no announced length", [chunked], 1),
    ("in drops", [slow(8, 0.02)], 1),
    ("408 then cut", [status(408), cut(100)], 3),
]


@pytest.mark.parametrize(("rules", "asked"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_what_can_be_cured_is(site: Site, collection: Collection, rules: list[Rule], asked: int) -> None:
    data = video(9000, 5)
    patience = {"read_timeout_s": 1.0} if hang in rules else {}
    report = collection.fetch({"a.mp4": site.put("a.mp4", data, *rules)}, **patience)
    assert report.fetched == 1
    assert collection.bytes("a.mp4") == data
    assert len(site.asked("a.mp4")) == len(rules) + (
        rules[0] not in (chunked,) and rules[-1].__qualname__[:4] != "slow"
    )


def test_a_broken_off_file_goes_on_where_it_ended(site: Site, collection: Collection) -> None:
    data = video(50_000, 1)
    report = collection.fetch({"a.mp4": site.put("a.mp4", data, cut(20_000), cut(10_000))})
    assert collection.bytes("a.mp4") == data
    first, second, third = site.asked("a.mp4")
    assert (first.range, second.range, third.range) == (None, "bytes=20000-", "bytes=30000-")
    assert {second.if_range, third.if_range} == {'"v1"'}
    assert (report.resumed_bytes, report.received_bytes) == (30_000, 20_000)


def test_a_file_that_changed_in_between_is_fetched_anew(site: Site, collection: Collection) -> None:
    old, new = video(40_000, 1), video(41_000, 2)

    def cut_and_change(handler, name):
        cut(20_000)(handler, name)
        site.files[name], site.etags[name] = new, '"v2"'

    collection.fetch({"a.mp4": site.put("a.mp4", old, cut_and_change)})
    assert collection.bytes("a.mp4") == new


def test_a_server_that_ignores_if_range_does_not_mix_two_versions(site: Site, collection: Collection) -> None:
    old, new = video(40_000, 1), video(41_000, 2)

    def cut_and_change(handler, name):
        cut(20_000)(handler, name)
        site.files[name], site.etags[name] = new, '"v2"'

    def rude(handler, name):
        handler.head(206, 21_000, ETag='"v2"', Content_Range="bytes 20000-40999/41000")
        handler.wfile.write(new[20_000:])

    collection.fetch({"a.mp4": site.put("a.mp4", old, cut_and_change, rude)})
    assert collection.bytes("a.mp4") == new
    assert [s.range for s in site.asked("a.mp4")] == [None, "bytes=20000-", None]


def test_without_ranges_or_validators_files_start_over(site: Site, collection: Collection) -> None:
    site.ranges = False
    collection.fetch({"a.mp4": site.put("a.mp4", video(9000, 1), cut(4000))})
    assert collection.bytes("a.mp4") == video(9000, 1)
    site.ranges = True
    collection.fetch({"b.mp4": site.put("b.mp4", video(9000, 2), cut(4000), etag=None)})
    assert collection.bytes("b.mp4") == video(9000, 2)
    assert [s.range for s in site.asked("b.mp4")] == [None, None], "nothing proves that a part is of the same body"


REFUSALS: list[tuple[str, list[Rule], str]] = [
    ("403", [status(403)], "http_403"),
    ("404", [status(404)], "http_404"),
    ("410", [status(410)], "http_410"),
    ("HTML with status 200", [answer(HTML, Content_Type="video/mp4")], "not_media"),
    ("short HTML", [answer(b"<html></html>")], "not_media"),
    ("JSON", [answer(b'{"error": "quota"}')], "not_media"),
    ("gzip", [answer(b"\x1f\x8b" + bytes(900), Content_Encoding="gzip")], "not_media"),
    ("nothing", [answer(b"")], "empty"),
    ("too large", [answer(video(90_001))], "too_large"),
    ("opted out", [answer(video(), X_Robots_Tag="noai, noimageai")], "opted_out"),
    ("redirect to loopback", [redirect("http://127.0.0.2:9/x.mp4")], "private_address"),
    ("redirect to metadata", [redirect("http://169.254.169.254/latest/meta-data/")], "private_address"),
    ("redirect to mapped metadata", [redirect("http://[::ffff:169.254.169.254]/")], "private_address"),
    ("redirect to a number", [redirect("http://2130706434/")], "private_address"),
    ("redirect to localhost", [redirect("http://localhost/x")], "private_address"),
    ("redirect to a file", [redirect("file:///etc/passwd")], "unsafe_redirect"),
    ("redirect to FTP", [redirect("ftp://example.org/x")], "unsafe_redirect"),
    ("redirect with credentials", [redirect("http://user:secret@example.org/x")], "unsafe_redirect"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "reason"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_what_cannot_be_cured_is_not_tried_again(
    site: Site, collection: Collection, rules: list[Rule], reason: str
) -> None:
    url = site.put("a.mp4", video(), *rules)
    report = collection.fetch({"a.mp4": url}, max_bytes=90_000)
    assert (report.fetched, dict(report.failed), report.unreachable) == (0, {reason: 1}, 0)
    assert len(site.seen) == 1
    assert collection.failures() == {"a.mp4": (reason, False)}
    assert not collection.storage.exists("a.mp4")
    assert collection.fetch({"a.mp4": url}, max_bytes=90_000).skipped == 1
    assert len(site.seen) == 1, "its failure is remembered"
    assert collection.fetch({"a.mp4": url}, again=True).fetched == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "unsafe_url"),
        ("http://10.0.0.1/a.mp4", "private_address"),
        ("http://[::1]/a.mp4", "private_address"),
        ("http://user:pw@example.org/a.mp4", "unsafe_url"),
        ("gopher://example.org/1", "unsafe_url"),
        ("http://exa mple.org/a.mp4", "unsafe_url"),
        ("http://[bad/a.mp4", "unsafe_url"),
    ],
)
def test_urls_that_must_not_be_asked(collection: Collection, url: str, reason: str) -> None:
    assert dict(collection.fetch({"a.mp4": url}).failed) == {reason: 1}


def test_redirects_are_followed_and_counted(site: Site, collection: Collection) -> None:
    site.put("end.mp4", video())
    assert collection.fetch({"a.mp4": site.put("a", b"", redirect("/end.mp4"))}).fetched == 1
    loop = {"b.mp4": site.put("b", b"", *[redirect("/b")] * 9)}
    assert dict(collection.fetch(loop, max_redirects=4).failed) == {"too_many_redirects": 1}
    assert len(site.asked("b")) == 5


def test_retry_after_holds_the_whole_host(site: Site, collection: Collection) -> None:
    urls = {f"{n}.mp4": site.put(f"{n}.mp4", video(tag=n)) for n in range(6)}
    site.rules["0.mp4"] = [status(429, Retry_After="1")]
    report = collection.fetch(urls, concurrency=1)
    assert (report.fetched, report.retries) == (6, 1)
    first, *rest = site.seen
    assert first.name == "0.mp4"
    assert min(s.at for s in rest) - first.at >= 0.95


# Where the host is not held, a long pause to hold it for: what comes at once comes well before its end.
@pytest.mark.parametrize(("code", "backoff_s", "held"), [(503, 0.2, True), (500, 2.0, False)])
def test_a_host_that_is_asked_too_much_is_left_alone_longer(
    site: Site, collection: Collection, code: int, backoff_s: float, held: bool
) -> None:
    urls = {f"{n}.mp4": site.put(f"{n}.mp4", video(tag=n)) for n in range(3)}
    site.rules["0.mp4"] = [status(code)]
    assert collection.fetch(urls, concurrency=1, backoff_s=backoff_s).fetched == 3
    first, *rest = site.seen
    assert (min(s.at for s in rest) - first.at >= 1.95 * backoff_s) == held  # 4 times that, half of it at least
    urls = {"late.mp4": site.put("late.mp4", video(), status(429, Retry_After="3600"))}
    with pytest.raises(InfrastructureError, match="1 http_429"):
        collection.fetch(urls, retry_after_max_s=10)


def test_an_outage_ends_the_run_and_the_next_goes_on(site: Site, collection: Collection) -> None:
    urls = {f"{n:02}.mp4": site.put(f"{n:02}.mp4", video(tag=n)) for n in range(30)}
    for n in range(10):
        site.rules[f"{n:02}.mp4"] = [status(503)] * 2
    with pytest.raises(InfrastructureError, match=r"10 of 30 files could not be reached \(10 http_503\)"):
        collection.fetch(urls, attempts=2, max_unreachable=0.1)
    assert set(collection.failures().values()) == {("http_503", True)}
    rest = {path: url for path, url in urls.items() if not collection.storage.exists(path)}
    assert collection.fetch(rest, attempts=2, max_unreachable=0.1).fetched == 10
    assert collection.failures() == {}


def test_claims_of_the_table_are_checked(site: Site, collection: Collection) -> None:
    data = video(tag=3)
    url = site.put("a.mp4", data)
    right = {"size_bytes": len(data), "md5": hashlib.md5(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}
    for name, wrong in (("size_bytes", 5), ("md5", "0" * 32), ("sha256", "0" * 64)):
        with pytest.raises(InfrastructureError):
            collection.fetch({"a.mp4": url}, claims={**right, name: wrong}, attempts=2)
        assert not collection.storage.exists("a.mp4")
    assert collection.fetch({"a.mp4": url}, claims=right).fetched == 1


def test_a_drained_download_keeps_its_parts(site: Site, collection: Collection) -> None:
    data = video(600_000, 9)
    url = site.put("a.mp4", data, slow(1000, 0.02))  # twenty seconds, if nobody stops it

    def stop(report: Report) -> None:
        parts = collection.storage.local_root / FOLDER / "parts"
        if any(p.stat().st_size > 0 for p in parts.rglob("*.part")):
            raise Drained("stop")

    with pytest.raises(Drained):
        collection.fetch({"a.mp4": url}, tick=stop)
    assert not collection.storage.exists("a.mp4")
    report = collection.fetch({"a.mp4": url})
    assert report.fetched == 1
    assert report.resumed_bytes > 0
    assert collection.bytes("a.mp4") == data


def test_two_downloads_of_one_collection_do_not_meet(collection: Collection) -> None:
    with (
        DownloadState(collection.storage, collection.cache),
        pytest.raises(InfrastructureError, match="another process is downloading"),
        DownloadState(collection.storage, collection.cache),
    ):
        pass


def test_a_full_disk_stops_the_run(site: Site, collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    url, before = site.put("a.mp4", video()), {*threading.enumerate()}
    with DownloadState(collection.storage, collection.cache) as state:
        monkeypatch.setattr("dataprep.download.partial.os.fsync", full)
        with pytest.raises(InfrastructureError, match="No space left"):
            download(config(), [WantedFile("a.mp4", url, "video")], state)
        monkeypatch.undo()
    assert [p.name for p in collection.storage.local_root.iterdir()] == [FOLDER]
    assert not [t.name for t in {*threading.enumerate()} - before if t.name.startswith("download-")]
    assert collection.fetch({"a.mp4": url}).fetched == 1


def test_names_that_the_disk_refuses_are_failures_of_their_own(site: Site, collection: Collection) -> None:
    long = "x" * 300 + ".mp4"
    report = collection.fetch({long: site.put("a.mp4", video()), "b.mp4": site.put("b.mp4", video())})
    assert (report.fetched, dict(report.failed)) == (1, {"unsafe_name": 1})


def test_the_state_has_a_digest_that_changes_with_what_failed(site: Site, collection: Collection) -> None:
    assert state_digest(collection.storage) is None
    urls = {"a.mp4": site.put("a.mp4", video()), "b.mp4": site.url("nothing")}
    collection.fetch(urls)
    failed = state_digest(collection.storage)
    site.put("nothing", video())
    collection.fetch({"b.mp4": urls["b.mp4"]}, again=True)
    assert None not in (failed, state_digest(collection.storage))
    assert failed != state_digest(collection.storage)


def test_a_remote_collection_is_filled_too(site: Site, s3_root: str, tmp_path: Path) -> None:
    storage = Storage(s3_root)
    data = video(70_000, 4)
    wanted = [
        WantedFile("v/a.mp4", site.put("a.mp4", data, cut(30_000)), "video"),
        WantedFile("v/b.mp4", site.url("nothing"), "video"),
    ]
    with DownloadState(storage, tmp_path) as state:
        report = download(config(), wanted, state)
    assert (report.fetched, dict(report.failed)) == (1, {"http_404": 1})
    assert storage.read_bytes("v/a.mp4") == data
    assert state_digest(storage) is not None
    assert [f.path for f in storage.list("v")] == ["v/a.mp4"]
