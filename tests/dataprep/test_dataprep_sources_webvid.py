import csv
import io
from pathlib import Path

import pytest
from source_runs import publish, stage_context

from dataprep.sources import probe, scan
from dataprep.sources.config import SourceConfig, WebVidConfig
from dataprep.sources.listing import WANTED, SourceListing, SourceReader
from dataprep.sources.webvid import duration_s
from dataprep.stages.source import run
from m4v.core.errors import InputError
from m4v.core.storage import Storage

ORIGINAL = ["videoid", "name", "page_idx", "page_dir", "duration", "contentUrl"]
MIRROR = ["videoid", "contentUrl", "duration", "page_dir", "name"]
URL = "https://ak.picdn.net/shutterstock/videos/{0}/preview/stock-footage-{0}.mp4"


def row(video: str, page: str, caption: str = "a horse grazes", **other: str) -> dict[str, str]:
    return {
        "videoid": video, "page_dir": page, "name": caption, "page_idx": "27732", "duration": "PT00H00M17S",
        "contentUrl": URL.format(video), **other,
    }  # fmt: skip


def table(path: Path, rows: list[dict[str, str]], header: list[str] = ORIGINAL, tail: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO()
    writer = csv.DictWriter(out, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(out.getvalue() + tail)


def video(root: Path, name: str, data: bytes = b"any bytes") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def listing(root: Path, **config: object) -> SourceListing:
    return scan(WebVidConfig.model_validate(config), Storage(str(root)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


ROWS = [
    row("1053841541", "027701_027750", "young man holds camera, in a forest."),
    row("0012", "054101_054150", 'a "leading zero" counts'),
    row("0012", "000001_000050", "the same id in another folder"),
    row("77", "", "no page folder"),
]


@pytest.mark.parametrize(
    ("header", "name"), [(ORIGINAL, "results_10M_train.csv"), (MIRROR, "data/train/partitions/0001.csv")]
)
def test_both_headers_are_read_by_name(tmp_path: Path, header: list[str], name: str) -> None:
    table(tmp_path / name, ROWS, header)
    for path in ("027701_027750/1053841541", "054101_054150/0012", "000001_000050/0012", "77"):
        video(tmp_path, f"videos/{path}.mp4")
    found = listing(tmp_path)
    assert found.rejected == []
    assert [(f.path, f.source_id) for f in found.files] == [
        ("videos/027701_027750/1053841541.mp4", "027701_027750/1053841541"),
        ("videos/054101_054150/0012.mp4", "054101_054150/0012"),
        ("videos/000001_000050/0012.mp4", "000001_000050/0012"),
        ("videos/77.mp4", "77"),
    ]
    first = found.files[0]
    assert [c.text for c in first.captions] == ["young man holds camera, in a forest."]
    assert first.duration_s == 17
    assert first.extra["duration_claimed"] == "PT00H00M17S"
    assert first.extra["url"] == URL.format("1053841541")
    assert ("page_idx" in first.extra) == (header is ORIGINAL)


def test_parts_of_a_sharded_download_are_searched(tmp_path: Path) -> None:
    table(tmp_path / "results_2M_train.csv", ROWS)
    video(tmp_path, "part0/027701_027750/1053841541.mp4")
    video(tmp_path, "part1/027701_027750/other.mp4")
    video(tmp_path, "part1/054101_054150/0012.mp4")
    found = listing(tmp_path)
    assert [f.path for f in found.files] == ["part0/027701_027750/1053841541.mp4", "part1/054101_054150/0012.mp4"]
    assert [(r.path, r.reason) for r in found.rejected] == [
        ("videos/000001_000050/0012.mp4", "missing_file"), ("videos/77.mp4", "missing_file"),
    ]  # fmt: skip
    assert [f.path for f in listing(tmp_path, videos=["part1"]).files] == ["part1/054101_054150/0012.mp4"]


def test_missing_files_say_where_to_fetch_them(tmp_path: Path) -> None:
    bad = [
        row("1", "p"), row("2", "p", contentUrl="file:///etc/passwd"), row("3", "p", contentUrl="http://127.0.0.1/a.mp4"),
        row("4", "p", contentUrl="http://169.254.169.254/latest"), row("5", "p", contentUrl="ftp://example.com/a"),
        row("6", "p", contentUrl="https://user:word@example.com/a.mp4"), row("7", "p", contentUrl="http://0x7f.1/a"),
        row("8", "p", contentUrl="http://[::1]/a"), row("9", "p", contentUrl=""), row("10", "p"),
    ]  # fmt: skip
    table(tmp_path / "root" / "results_x.csv", bad)
    video(tmp_path / "root", "videos/p/10.mp4")
    reader = SourceReader(publish(tmp_path / "work", {"kind": "webvid", "terms": "internal use"}, tmp_path / "root"))
    assert [(r.row, r.reason) for r in reader.rejected()] == [
        (1, "missing_file"), *((n, "unsafe_url") for n in range(2, 9)), (9, "missing_file"),
    ]  # fmt: skip
    (wanted,) = reader.wanted()
    assert wanted.wanted is not None
    assert (wanted.path, wanted.row, wanted.wanted.source_id) == ("videos/p/1.mp4", 1, "p/1")
    assert wanted.wanted.url == URL.format("1")
    assert wanted.wanted.claims["duration_s"] == 17
    assert (reader.facts.kind, reader.facts.terms, reader.facts.counts["wanted"]) == ("webvid", "internal use", 1)


def test_a_whole_collection_needs_no_table_of_wanted_files(tmp_path: Path) -> None:
    table(tmp_path / "root" / "results_x.csv", [row("1", "p")])
    video(tmp_path / "root", "videos/p/1.mp4")
    assert WANTED not in publish(tmp_path / "work", {"kind": "webvid"}, tmp_path / "root").names()


def test_nasty_rows_are_rejected_with_row_and_byte(tmp_path: Path) -> None:
    rows = [
        row("1", "p", "fine\nover two lines, with a \x00 and &amp; sign​"),
        row("1", "p", "the same id again"),
        row("../../etc", "p"), row("a/b", "p"), row("5", "../up"), row("6", "/abs"), row("7", "C:\\x"),
        row("8", "p", " ​ "),
        row("9", "p"),
        row("10", "p", duration="PT01H02M37S"), row("11", "p", duration="-3"), row("12", "p", duration="PT00H00M00S"),
        dict(zip(ORIGINAL, ORIGINAL, strict=True)),
    ]  # fmt: skip
    table(
        tmp_path / "results_x.csv", rows, tail='13,"ragged, row\n14,x,27732,p,PT00H00M17S,https://example.com/14.mp4\n'
    )
    for n in (1, 8, 10, 11, 12, 14):
        video(tmp_path, f"videos/p/{n}.mp4")
    video(tmp_path, "videos/p/9.mp4", b"")
    found = listing(tmp_path)
    assert [(r.row, r.reason) for r in found.rejected] == [
        (2, "duplicate_id"), *((n, "unsafe_name") for n in range(3, 8)), (8, "missing_caption"), (9, "empty"),
        (14, "bad_row"),
    ]  # fmt: skip
    assert all("byte" in r.detail for r in found.rejected)
    assert [(f.path[-6:-4].strip("/"), f.duration_s) for f in found.files] == [
        ("1", 17), ("10", 3757), ("11", None), ("12", None), ("14", 17),
    ]  # fmt: skip
    assert found.files[0].captions[0].text == "fine over two lines, with a and & sign"
    assert found.counts == {"rows": 15, "repeated_headers": 1, "captions_repaired": 1}


def test_invalid_bytes_in_a_caption(tmp_path: Path) -> None:
    table(tmp_path / "results_x.csv", [row("1", "p", "a caf@ by the long river in the evening"), row("2", "p", "@@")])
    path = tmp_path / "results_x.csv"
    path.write_bytes(path.read_bytes().replace(b"@", b"\xe9"))
    for n in (1, 2):
        video(tmp_path, f"videos/p/{n}.mp4")
    found = listing(tmp_path)
    assert found.files[0].captions[0].text == "a caf by the long river in the evening"
    assert [(r.row, r.reason) for r in found.rejected] == [(2, "caption_encoding")]


def test_collection_level_errors_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no WebVid CSV found"):
        listing(tmp_path)
    (tmp_path / "results_x.csv").write_text("videoid,name\n1,x\n")
    with pytest.raises(InputError, match=r"lacks the columns page_dir.*its columns are videoid, name"):
        listing(tmp_path)
    with pytest.raises(InputError, match="directory does not exist"):
        listing(tmp_path / "nowhere")


def test_limit_and_probe(tmp_path: Path) -> None:
    table(tmp_path / "results_x.csv", [row(str(n), "p") for n in range(5)])
    for n in range(5):
        video(tmp_path, f"videos/p/{n}.mp4")
    found = listing(tmp_path, limit=2)
    assert (len(found.files), found.counts["over_limit"]) == (2, 3)
    config = SourceConfig(name="web", adapter=WebVidConfig())
    before = probe(config, {"web": str(tmp_path)})
    assert probe(config, {"web": str(tmp_path)}) == before
    video(tmp_path, "videos/p/1.mp4", b"other bytes")
    assert probe(config, {"web": str(tmp_path)}) != before


def test_listing_runs_as_a_stage_twice_with_equal_bytes(tmp_path: Path) -> None:
    table(tmp_path / "root" / "results_x.csv", ROWS)
    video(tmp_path / "root", "videos/027701_027750/1053841541.mp4")
    first = publish(tmp_path / "a", {"kind": "webvid"}, tmp_path / "root")
    assert publish(tmp_path / "b", {"kind": "webvid"}, tmp_path / "root").id == first.id
    context = stage_context(tmp_path / "c", {"kind": "webvid"}, tmp_path / "root")
    run(context)
    context.progress.close()
    assert context.summaries()["source"]["rejected_missing_file"] == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("PT00H00M17S", 17), ("PT1M", 60), ("PT2.5S", 2.5), ("", None), ("17", None), ("PT99H0M0S", None), ("PT", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds
