"""Local copies of remote media: bounded on disk, what is in use stays, a killed worker's claim goes."""

from __future__ import annotations

import multiprocessing
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataprep.media.cache import LIMIT, MediaCache, limit_bytes, release
from dataprep.media.location import MediaFile
from dataprep.quarantine import ItemError
from m4v.core.canonical import digest_bytes
from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.storage import Storage

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    release()


def filled(size: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(bytes(size)) and None


def name(number: int) -> str:
    return f"{number:02d}" * 32


def held(folder: Path) -> list[str]:
    return sorted(p.name[:2] for p in folder.glob("??/*"))


def test_the_longest_unused_copies_go_and_bytes_stay_bounded(tmp_path: Path) -> None:
    cache = MediaCache(tmp_path, 1000)
    for number in range(40):
        path = cache.get(name(number), 100, filled(100))
        assert path.stat().st_size == 100
        assert sum(p.stat().st_size for p in tmp_path.glob("??/*")) <= 1000
    assert held(tmp_path)[-1] == "39"
    before = held(tmp_path)
    made: list[Path] = []
    cache.get(name(int(before[0])), 100, made.append)  # there: not made again, and now the newest
    cache.get(name(50), 500, filled(500))
    assert made == []
    assert before[0] in held(tmp_path)
    assert before[1] not in held(tmp_path)


def test_a_copy_that_a_worker_uses_stays(tmp_path: Path) -> None:
    def use(ready: object) -> None:
        MediaCache(tmp_path, 1000).get(name(1), 600, filled(600))
        ready.set()  # type: ignore[attr-defined]
        time.sleep(600)

    ready = FORK.Event()
    worker = FORK.Process(target=use, args=(ready,))
    worker.start()
    try:
        assert ready.wait(300)
        with pytest.raises(InfrastructureError, match="all others are in use"):
            MediaCache(tmp_path, 1000, patience_s=0.3).get(name(2), 600, filled(600))
        assert held(tmp_path) == ["01"]
    finally:
        worker.kill()
        worker.join()
    MediaCache(tmp_path, 1000).get(name(2), 600, filled(600))  # it uses it no more
    assert held(tmp_path) == ["02"]


def test_the_last_of_the_disk_is_left_alone(tmp_path: Path) -> None:
    free = (1 << 30) + 1000
    cache = MediaCache(tmp_path, patience_s=0.1, free_bytes=lambda folder: free)
    cache.get(name(1), 900, filled(900))
    with pytest.raises(InfrastructureError, match="no room for a local copy"):
        cache.get(name(2), 5000, filled(5000))
    assert held(tmp_path) == []  # it tried


def test_a_killed_workers_claim_is_no_claim(tmp_path: Path) -> None:
    def die(path: Path) -> None:
        os._exit(9)

    worker = FORK.Process(target=lambda: MediaCache(tmp_path, 1000).get(name(1), 700, die))
    worker.start()
    worker.join()
    assert worker.exitcode == 9
    MediaCache(tmp_path, 1000, patience_s=0.3).get(name(2), 700, filled(700))
    assert held(tmp_path) == ["02"]


def test_limits_that_cannot_be_met_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=rf"larger than what local copies may hold.*raise {LIMIT}"):
        MediaCache(tmp_path, 1000).get(name(1), 1001, filled(1001))
    monkeypatch.setenv(LIMIT, "0.5")
    assert limit_bytes() == 1 << 29
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(ConfigError, match="not a positive number"):
        limit_bytes()
    monkeypatch.delenv(LIMIT)
    assert limit_bytes() is None


def test_members_of_an_archive_go_through_the_cache(tmp_path: Path) -> None:
    payloads = {f"{n}.mp4": bytes([n]) * 400 for n in range(6)}
    with zipfile.ZipFile(tmp_path / "part.zip", "w") as archive:
        for member, data in payloads.items():
            archive.writestr(member, data)
    cache = tmp_path / "cache"
    for member, data in payloads.items():
        file = MediaFile(str(tmp_path), f"part.zip!/{member}", 400, digest_bytes(data), True, str(cache), 1000)
        assert file.local().read_bytes() == data
    assert len(list(cache.glob("??/*"))) <= 2
    wrong = MediaFile(str(tmp_path), "part.zip!/0.mp4", 400, "0" * 64, True, str(cache), 1000)
    with pytest.raises(ItemError, match="source_changed"):
        wrong.local()
    assert not (cache / "00" / ("0" * 64)).exists()


def test_files_of_a_store_go_through_the_cache(tmp_path: Path, s3_root: str) -> None:
    """Fetched over the S3 protocol, bounded on disk, read from the copy while it is there, never wrong."""
    store, cache = Storage(s3_root), tmp_path / "cache"
    payloads = {f"part/{n}.mp4": bytes([n]) * 400 for n in range(5)}
    for path, data in payloads.items():
        store.write_bytes(path, data)

    def listed(path: str, digest: str, size: int = 400) -> MediaFile:
        return MediaFile(s3_root, path, size, digest, True, str(cache), 1000)

    for path, data in payloads.items():
        assert listed(path, digest_bytes(data)).local().read_bytes() == data
        assert sum(p.stat().st_size for p in cache.glob("??/*")) <= 1000
    store.delete("part/4.mp4")
    last = digest_bytes(payloads["part/4.mp4"])
    assert listed("part/4.mp4", last).local().read_bytes() == payloads["part/4.mp4"], "the copy is still there"
    with pytest.raises(ItemError, match="missing_file"):
        listed("part/9.mp4", "9" * 64).local()
    store.write_bytes("part/0.mp4", b"x" * 400)  # changed since it was listed, its copy is gone
    with pytest.raises(ItemError, match="source_changed"):
        listed("part/0.mp4", digest_bytes(payloads["part/0.mp4"])).local()
    with pytest.raises(ItemError, match="source_changed"):
        listed("part/1.mp4", digest_bytes(payloads["part/1.mp4"]), size=300).local()
    held_now = sorted(p.name for p in cache.glob("??/*"))
    assert digest_bytes(payloads["part/0.mp4"]) not in held_now
    assert all(digest_bytes(p.read_bytes()) == p.name for p in cache.glob("??/*"))
