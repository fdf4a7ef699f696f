"""The source stage with `download`: what tables name by URL is fetched, then listed; kills lose and double nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import Site, answer, half_until, serving, slow, status, video
from source_runs import publish, stage_context

from dataprep.config import SourceConfig
from dataprep.download.state import FOLDER
from dataprep.sources import probe
from dataprep.sources.listing import SourceReader
from dataprep.stages.source import run
from m4v.core.errors import DataIntegrityError, Drained, InfrastructureError
from m4v.core.stage import Progress

QUICK = {"allow": ["127.0.0.1"], "backoff_s": 0.01, "host_rate_per_s": None, "attempts": 3}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path / "cache"))


def webvid(root: Path, site: Site, count: int) -> Path:
    """A WebVid table of `count` videos that are on the server only."""
    root.mkdir()
    lines = ["videoid,contentUrl,duration,page_dir,name"]
    for n in range(count):
        url = site.put(f"{n:03}.mp4", video(20_000 + n, n))
        lines.append(f"{n:03},{url},PT00H00M05S,p{n % 4},a clip of number {n}")
    (root / "results_2M_val.csv").write_text("\n".join(lines) + "\n")
    return root


def adapter(**download: object) -> dict[str, object]:
    return {"kind": "webvid", "download": {**QUICK, **download}}


def config(**download: object) -> SourceConfig:
    return SourceConfig.model_validate({"name": "mine", "adapter": adapter(**download)})


def test_what_the_table_names_is_fetched_and_listed(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 24)
    site.rules["003.mp4"] = [status(404)]
    site.rules["004.mp4"] = [answer(b"<html>gone</html>")]
    site.rules["005.mp4"] = [status(500)]
    artifact = publish(tmp_path / "one", adapter(), root)
    reader = SourceReader(artifact)
    assert len(list(reader.files())) == 22
    assert {r.path: r.reason for r in reader.rejected()} == {
        "videos/p3/003.mp4": "http_404", "videos/p0/004.mp4": "not_media",
    }  # fmt: skip
    assert [r.path for r in reader.wanted()] == ["videos/p3/003.mp4", "videos/p0/004.mp4"]
    assert (root / "videos/p1/005.mp4").read_bytes() == site.files["005.mp4"]
    progress = Progress.model_validate_json((tmp_path / "one" / "progress.json").read_bytes())
    assert progress.unit == "downloads"
    assert "22 fetched; failed: " in progress.note
    asked = len(site.seen)
    again = publish(tmp_path / "two", adapter(), root)
    assert again.id == artifact.id
    assert len(site.seen) == asked, "neither a file that is there nor one that failed for good is asked for"


def test_a_plan_sees_what_a_download_has_changed(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 4)
    site.rules["003.mp4"] = [status(404)]
    places = {"mine": str(root)}
    before = probe(config(), places)
    publish(tmp_path / "one", adapter(), root)
    after = probe(config(), places)
    assert after != before
    publish(tmp_path / "two", adapter(), root)
    assert probe(config(), places) == after
    for file in root.rglob("*.mp4"):
        file.unlink()
    assert probe(config(), places) not in (before, after), "with its files gone the collection is not as at first"


def test_a_limit_fetches_no_more_than_it_lists(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 60)
    for n in (1, 3, 7):
        site.rules[f"{n:03}.mp4"] = [status(410)] * 9
    artifact = publish(tmp_path / "one", {**adapter(), "limit": 8}, root)
    reader = SourceReader(artifact)
    assert [f.source_id for f in reader.files()] == [f"p{n % 4}/{n:03}" for n in (0, 2, 4, 5, 6, 8, 9, 10)]
    assert {r.reason for r in reader.rejected()} == {"http_410"}
    assert len(site.seen) == 11
    assert reader.facts.counts["over_limit"] == 60 - 11


def test_an_outage_is_tried_again_and_too_many_dead_links_are_not(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 24)
    for n in range(24):
        site.rules[f"{n:03}.mp4"] = [status(503)] * 2
    with pytest.raises(InfrastructureError, match="24 of 24 files could not be reached"):
        publish(tmp_path / "one", adapter(attempts=2), root)
    for n in range(16):
        site.rules[f"{n:03}.mp4"] = [status(404)]
    with pytest.raises(DataIntegrityError, match=r"16 of 24 rows were rejected \(16 http_404"):
        publish(tmp_path / "two", adapter(attempts=2), root)


def test_private_addresses_need_to_be_allowed(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 24)
    with pytest.raises(Exception, match="24 unsafe_url"):
        publish(tmp_path / "one", adapter(allow=[]), root)
    assert site.seen == []


CHILD = """
import json, sys
from pathlib import Path
from source_runs import stage_context
from dataprep.stages.source import run
work, adapter, location = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
run(stage_context(work, adapter, location))
"""


def start(work: Path, root: Path, **download: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    arguments = [sys.executable, "-c", CHILD, str(work), json.dumps(adapter(**download)), str(root)]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)


def test_kill_costs_nothing_that_was_done(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 40)
    killed = threading.Event()
    for n in range(40):  # the last never come to their end before the kill
        site.rules[f"{n:03}.mp4"] = [slow(10 + 6 * (n % 4), 0.01) if n < 28 else half_until(killed)] * 4
    for wanted in (8, 20):
        child = start(tmp_path / f"killed{wanted}", root, concurrency=4)
        deadline = time.monotonic() + 300
        while len(list((root / "videos").rglob("*.mp4"))) < wanted and time.monotonic() < deadline:
            assert child.poll() is None, child.stderr and child.stderr.read().decode()
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    killed.set()
    there = {p.name for p in (root / "videos").rglob("*.mp4")}
    assert 20 <= len(there) < 40
    assert list((root / FOLDER / "parts").rglob("*.part")), "killed in the middle of a file"
    asked = len(site.seen)
    site.rules.clear()
    artifact = publish(tmp_path / "last", adapter(), root)
    later = [s.name for s in site.seen[asked:]]
    assert not there & set(later), "a finished file is never fetched again"
    assert len(later) == len(set(later))
    assert any(s.range for s in site.seen[asked:]), "a part is gone on with"
    whole = list(SourceReader(artifact).files())
    assert len(whole) == 40
    assert all((root / f.path).read_bytes() == site.files[Path(f.path).name] for f in whole)
    clean = webvid(tmp_path / "clean", site, 40)
    assert publish(tmp_path / "unkilled", adapter(), clean).id == artifact.id


def test_a_drained_stage_stops_soon(site: Site, tmp_path: Path) -> None:
    root = webvid(tmp_path / "w", site, 30)
    for n in range(30):
        site.rules[f"{n:03}.mp4"] = [slow(20, 0.02)]
    context = stage_context(tmp_path / "one", adapter(concurrency=2), root)
    context.request_drain()
    with pytest.raises(Drained):
        run(context)
    assert len(site.seen) <= 4
