"""Parts of the downloader: addresses, URLs, magic bytes, the schedule, the state table, ranges of one URL."""

from __future__ import annotations

import io
import ipaddress
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import Handler, Site, cut, hang, serve, serving, status, video
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataprep.download.addresses import AddressGuard, is_public
from dataprep.download.client import Client, retry_after_s
from dataprep.download.config import DownloadConfig
from dataprep.download.magic import media_problem
from dataprep.download.outcome import Fetched, FetchError, WantedFile
from dataprep.download.ranges import open_url
from dataprep.download.schedule import Bucket, Schedule, Task
from dataprep.download.state import DownloadState
from dataprep.download.urls import url_problem
from m4v.core.errors import DataIntegrityError, InfrastructureError, InputError
from m4v.core.ranges import RangeReader
from m4v.core.storage import Storage


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "240.0.0.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
     "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "2001:0:7f00:1::"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_with_one_private_address_is_refused_as_a_whole() -> None:
    answers = {"mixed.test": ["8.8.8.8", "10.0.0.1"], "good.test": ["8.8.8.8"], "intranet.test": ["10.0.0.9"]}
    guard = AddressGuard(("intranet.test", "10.7.0.0/16"), lambda host, port: answers.get(host, ["10.7.1.1"]))
    assert guard.addresses("good.test", 80) == ["8.8.8.8"]
    assert guard.addresses("intranet.test", 80) == ["10.0.0.9"]
    assert guard.addresses("other.test", 80) == ["10.7.1.1"]
    with pytest.raises(FetchError, match=r"private_address: mixed.test resolves to 10.0.0.1"):
        guard.addresses("mixed.test", 80)


def test_a_second_dns_answer_leads_nowhere_else() -> None:
    """The address that was checked is the one connected to: a rebinding name is asked once a connection."""
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) > 1 else ["192.0.2.1"]

    config = DownloadConfig(allow=("192.0.2.0/24",), connect_timeout_s=0.2)
    client = Client(config, AddressGuard(config.allow, rebinding))
    with pytest.raises(FetchError) as first, client.get("http://rebind.test:9/", {}):
        pass
    assert first.value.reason in ("timeout", "unreachable")
    assert asked == ["rebind.test"]
    with pytest.raises(FetchError, match="private_address"), client.get("http://rebind.test:9/", {}):
        pass
    client.close()


def test_names_without_address_may_come_back() -> None:
    def nothing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchError, match="host_unknown") as caught:
        AddressGuard((), nothing).addresses("gone.test", 80)
    assert caught.value.retry


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_not(text: str) -> None:
    problem = url_problem(text)
    assert problem is None or (problem and "\n" not in problem)
    if problem is None:
        assert text.startswith(("http://", "https://", "HTTP", "Http", "hTtp")) or "://" in text


# Spelt plainly, or so that the whole of a URL has to be parsed: one verdict.
@pytest.mark.parametrize("start", ["http://", "HTTPS://"])
@pytest.mark.parametrize("end", ["", "/a/b.mp4?x=1#y", ":443/a"])
@pytest.mark.parametrize(("host", "problem"), [("example.com", None), ("10.0.0.1", "names a private address")])
def test_plain_and_unusual_spellings_get_one_verdict(start: str, end: str, host: str, problem: str | None) -> None:
    assert url_problem(start + host + end) == problem
    assert url_problem(start + "u:p@" + host + end) == "carries credentials"
    assert url_problem(start + host + end + "\x1f") == "holds spaces or control characters"


@pytest.mark.parametrize("text", ["http://127.1/", "http://0x7f.1/", "http://2130706433/", "http://localhost./"])
def test_spellings_of_loopback(text: str) -> None:
    assert url_problem(text) == "names a private address"


def test_allow_lists_are_checked() -> None:
    for good in ("10.0.0.0/8", "::1", "media.intranet", "127.0.0.1"):
        assert DownloadConfig(allow=(good,)).allow == (good,)
    for bad in ("10.0.0.1/8", "host:80", "http://x", "a b", ""):
        with pytest.raises(ValidationError):
            DownloadConfig(allow=(bad,))


@pytest.mark.parametrize(
    ("head", "media"),
    [(video(600), "video"), (b"\x1a\x45\xdf\xa3" + bytes(50), "video"), (b"RIFF\0\0\0\0AVI LIST", "video"),
     ((b"\x47" + bytes(187)) * 3, "video"), (b"\xff\xd8\xff\xe0", "image"), (b"\x89PNG\r\n\x1a\n\0", "image"),
     (b"RIFF\0\0\0\0WEBPVP8 ", "image"), (b"\0\0\0\x1cftypavif", "image"), (b"GIF89a", "video")],
)  # fmt: skip
def test_media_is_known_by_its_first_bytes(head: bytes, media: str) -> None:
    assert media_problem(head, media) is None


@pytest.mark.parametrize(
    ("head", "media", "problem"),
    [(b"  <!DOCTYPE html>", "video", "an HTML page"), (b"\xef\xbb\xbf<html>", "image", "an HTML page"),
     (b"<?xml version='1.0'?><Error>", "video", "an XML document"), (b'{"a": 1}', "video", "JSON"),
     (b"#EXTM3U\n", "video", "a playlist, not the video"), (b"Not found", "image", "text"),
     (b"\xff\xd8\xff\xe0", "video", "no video that is known (begins with ffd8ffe0)"),
     (b"\0\0\0\x1cftypavif", "video", "no video that is known (begins with 0000001c66747970)")],
)  # fmt: skip
def test_what_is_no_media_is_named(head: bytes, media: str, problem: str) -> None:
    assert media_problem(head, media) == problem


@given(st.binary(max_size=600), st.sampled_from(["video", "image"]))
def test_any_bytes_are_judged(head: bytes, media: str) -> None:
    problem = media_problem(head, media)
    assert problem is None or problem


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def task(name: str, host: str = "a.test") -> Task:
    return Task(WantedFile(name, f"http://{host}/{name}", "video"))


def test_a_bucket_keeps_its_rate() -> None:
    clock = Clock()
    bucket, passed = Bucket(4.0, clock), 0
    while clock.now < 110:
        if bucket.wait_s() == 0:
            bucket.take()
            passed += 1
        clock.now += 0.01
    assert 39 <= passed <= 45


def test_hosts_take_turns_and_one_that_pauses_holds_nobody_up() -> None:
    clock = Clock()
    schedule = Schedule(DownloadConfig(per_host=2, host_rate_per_s=None), clock)
    for n in range(4):
        schedule.add(task(f"a{n}"))
    schedule.add(task("b0", "b.test"))
    taken = [schedule.take() for _ in range(3)]
    assert [t.wanted.path for t in taken if t] == ["a0", "b0", "a1"]
    assert taken[0] is not None
    schedule.pause(taken[0], 50)
    schedule.finish(taken[0], retry_in_s=10)
    schedule.add(task("b1", "b.test"))
    found = schedule.take()
    assert found is not None
    assert found.wanted.path == "b1"
    clock.now += 51
    again = schedule.take()
    assert again is not None
    assert again.wanted.path == "a2"
    assert schedule.held == 6
    schedule.close()
    assert schedule.take() is None


def test_rates_hold_across_threads() -> None:
    begun = time.monotonic()
    schedule = Schedule(DownloadConfig(rate_per_s=50, host_rate_per_s=None, per_host=99))
    for n in range(50):
        schedule.add(task(str(n), f"h{n}.test"))
    times: list[float] = []

    def work() -> None:
        while (found := schedule.take()) is not None:
            times.append(time.monotonic())
            schedule.finish(found)
            if not schedule.held:
                schedule.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 50
    early = [n for n, at in enumerate(sorted(times)) if at < begun + n / 50 - 1e-6]
    assert not early, "50 requests at 50 a second, none before its turn"


def test_the_state_remembers_and_forgets_what_it_should(tmp_path: Path) -> None:
    def file(path: str, url: str = "http://x.test/1") -> WantedFile:
        return WantedFile(path, url, "video")

    storage = Storage(str(tmp_path / "c"))
    with DownloadState(storage, tmp_path) as state:
        state.want([file("a"), file("b"), file("c"), file("c", "http://x.test/second"), file("d")])
        assert [f.path for f in state.pending()] == ["a", "b", "c", "d"]
        assert next(f for f in state.pending() if f.path == "c").url.endswith("/1")
        state.fetched("a", Fetched(5, "0" * 64, 5, 0, "video/mp4"), 1)
        state.failed("b", FetchError("http_404"), 1)
        state.failed("c", FetchError("timeout", "late", retry=True), 3)
        assert state.counts() == {"fetched": 1, "failed": 1, "unreachable": 1, "pending": 1}
    with DownloadState(storage, tmp_path) as state:
        state.want([file("a"), file("b"), file("c"), file("d")])
        assert [f.path for f in state.pending()] == ["a", "c", "d"], "also what was fetched and is gone"
        assert state.failure("b") == ("http_404", "")
    with DownloadState(storage, tmp_path) as state:
        state.want([file("b", "http://x.test/elsewhere")])
        assert [f.path for f in state.pending()] == ["b"], "a new URL is another chance"


def test_retry_after_in_both_forms() -> None:
    assert retry_after_s("7") == 7
    assert retry_after_s(None) is None
    assert retry_after_s("soon") is None
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@given(
    st.binary(min_size=0, max_size=3000), st.lists(st.tuples(st.integers(0, 3100), st.integers(0, 900)), max_size=20)
)
def test_ranges_read_like_a_file(data: bytes, reads: list[tuple[int, int]]) -> None:
    fetched = []

    def fetch(start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(data)
        fetched.append(end - start)
        return data[start:end]

    reader, model = RangeReader(fetch, len(data), first=64, most=512, kept=1024), io.BytesIO(data)
    for at, size in reads:
        reader.seek(at)
        model.seek(at)
        assert reader.read(size) == model.read(size)
        assert reader.tell() == model.tell()
    reader.seek(0)
    assert reader.read() == data
    assert max(fetched, default=0) <= 512


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def ranged(handler: Handler, name: str) -> None:
    """A range with both ends, as archives are read."""
    first, last = (int(n) for n in handler.headers["Range"].removeprefix("bytes=").split("-"))
    data = handler.site.files[name]
    piece = data[first : last + 1]
    etag = handler.site.etags[name]
    handler.head(206, len(piece), ETag=etag, Content_Range=f"bytes {first}-{first + len(piece) - 1}/{len(data)}")
    handler.wfile.write(piece)


QUICK = DownloadConfig(allow=("127.0.0.1",), backoff_s=0.01, read_timeout_s=1.0, attempts=4)


def test_a_zip_is_read_in_place_through_faults(site: Site) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for n in range(8):
            archive.writestr(f"{n}.mp4", video(400_000, n))
    url = site.put("a.zip", held.getvalue(), *[r for _ in range(30) for r in (status(503), ranged, hang, ranged)])
    site.rules["a.zip"][2:2] = [ranged, cut(0), ranged]
    with open_url(url, QUICK) as stream, zipfile.ZipFile(stream) as archive:
        assert archive.read("5.mp4") == video(400_000, 5)
        assert len(archive.namelist()) == 8
    total = sum(1 for s in site.asked("a.zip"))
    assert total < 20


def test_a_url_that_changes_or_gives_no_ranges(site: Site) -> None:
    url = site.put("a", video(2_000_000), *[ranged] * 2)
    with open_url(url, QUICK) as stream:
        assert stream.read(4) == video()[:4]
        site.etags["a"], site.rules["a"] = '"v2"', [ranged] * 9
        stream.seek(1_500_000)
        with pytest.raises(DataIntegrityError, match="changed"):
            stream.read(10)
    with pytest.raises(InputError, match="no_ranges"):
        open_url(site.put("b", video(), serve), QUICK)
    with pytest.raises(InputError, match="http_404"):
        open_url(site.url("nothing"), QUICK)
    with pytest.raises(InfrastructureError, match="http_503"):
        open_url(site.put("c", video(), *[status(503)] * 9), QUICK)
    with pytest.raises(InputError, match="private"):
        open_url(url)
