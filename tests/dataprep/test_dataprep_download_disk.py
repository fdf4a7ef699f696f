"""What a download may hold on disk: its own limit, the space that stays free, and waiting where files move on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import Site, chunked, serving, video

from dataprep.download.config import DownloadConfig
from dataprep.download.disk import Disk
from dataprep.download.outcome import WantedFile
from dataprep.download.run import Report, download
from dataprep.download.state import DownloadState
from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.storage import Storage

GIB = 1 << 30


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


def config(**settings: object) -> DownloadConfig:
    quick = {"allow": ("127.0.0.1",), "backoff_s": 0.01, "host_rate_per_s": None, "concurrency": 1}
    return DownloadConfig.model_validate({**quick, **settings})


def fetch(root: Path, urls: dict[str, str], **settings: object) -> Report:
    with DownloadState(Storage(str(root / "collection")), root / "cache") as state:
        return download(config(**settings), [WantedFile(p, u, "video", {}) for p, u in urls.items()], state)


def test_a_local_collection_stops_at_its_limit_and_goes_on_after_it_is_raised(tmp_path: Path, site: Site) -> None:
    urls = {f"{n}.mp4": site.put(f"{n}.mp4", video(4000, n)) for n in range(4)}
    with pytest.raises(ConfigError, match=r"would hold 12000 bytes on disk.*9000.*raise download.max_disk_bytes"):
        fetch(tmp_path, urls, max_disk_bytes=9000)
    there = sorted((tmp_path / "collection").glob("*.mp4"))
    assert [p.name for p in there] == ["0.mp4", "1.mp4"]
    rest = {name: url for name, url in urls.items() if not (tmp_path / "collection" / name).exists()}
    with pytest.raises(ConfigError, match="would hold 12000 bytes"):  # what earlier runs brought counts
        fetch(tmp_path, rest, max_disk_bytes=9000)
    assert fetch(tmp_path, rest, max_disk_bytes=16000).fetched == 2


def test_a_body_of_unknown_length_asks_for_room_as_it_grows(tmp_path: Path, site: Site) -> None:
    urls = {"a.mp4": site.put("a.mp4", video(4000), chunked)}
    with pytest.raises(ConfigError, match="max_disk_bytes"):
        fetch(tmp_path, urls, max_disk_bytes=3000)


def test_space_stays_free_for_others(tmp_path: Path, site: Site) -> None:
    urls = {"a.mp4": site.put("a.mp4", video(4000))}
    with pytest.raises(InfrastructureError, match=r"bytes left, less than download.min_free_bytes.*free some space"):
        fetch(tmp_path, urls, min_free_bytes=1 << 60)
    assert not list((tmp_path / "collection").glob("*.mp4"))
    assert fetch(tmp_path, urls).fetched == 1


def test_promises_count_against_the_free_space(tmp_path: Path) -> None:
    disk = Disk(config(), tmp_path, free_bytes=lambda folder: GIB + 100)
    disk.begin(tmp_path / "a.part", 0, 60)
    with pytest.raises(InfrastructureError):
        disk.begin(tmp_path / "b.part", 0, 60)
    disk.end(tmp_path / "b.part", placed=False)
    disk.begin(tmp_path / "c.part", 0, 40)


def test_parts_of_earlier_runs_count_and_are_not_counted_twice(tmp_path: Path) -> None:
    part = tmp_path / "aa" / "a.part"
    part.parent.mkdir()
    part.write_bytes(bytes(600))
    disk = Disk(config(max_disk_bytes=1000), tmp_path)
    with pytest.raises(ConfigError, match="1100 bytes"):
        disk.begin(tmp_path / "b.part", 0, 500)
    disk.end(tmp_path / "b.part", placed=False)
    disk.begin(part, 600, 1000)
    disk.end(part, placed=False)
    disk.begin(tmp_path / "b.part", 0, 400)  # the part is still 600 bytes


def test_files_on_their_way_to_a_remote_collection_wait_for_room(tmp_path: Path) -> None:
    disk = Disk(config(max_disk_bytes=1000), tmp_path, stays=False, kept=10**9)
    first, second = tmp_path / "a.part", tmp_path / "b.part"
    disk.begin(first, 0, 800)
    begun = threading.Event()

    def other() -> None:
        disk.begin(second, 0, 900)
        begun.set()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    time.sleep(0.1)
    assert not begun.is_set()
    disk.end(first, placed=True)
    assert begun.wait(300)
    thread.join(300)
    with pytest.raises(ConfigError, match="1900 bytes"):  # nobody else could make room for this one
        disk.end(second, placed=True), disk.begin(first, 0, 1900)
