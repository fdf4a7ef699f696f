import json
import os
from pathlib import Path

import nasty
import pytest

from dataprep.sources import probe, scan
from dataprep.sources.config import FolderConfig, ImagesConfig, SourceConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import Rejected, SourceListing
from dataprep.sources.tree import glob_regex
from m4v.core.canonical import digest_bytes
from m4v.core.errors import InputError
from m4v.core.storage import Storage

MEDIA = b"any bytes: listing never decodes"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path / "cache"))


def put(folder: Path, name: str, data: bytes | str | object = MEDIA) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(data, bytes):
        data = data.encode() if isinstance(data, str) else json.dumps(data).encode()
    path.write_bytes(data)
    return path


def listing(folder: Path, **config: object) -> SourceListing:
    return scan(FolderConfig.model_validate(config), Storage(str(folder)))


def captions(found: SourceListing) -> dict[str, list[tuple[int | None, int | None, str]]]:
    return {f.path: [c[:3] for c in f.captions] for f in found.files}


def reasons(found: SourceListing) -> list[tuple[str, int | None, str]]:
    return [(r.path, r.row, r.reason) for r in found.rejected]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a  cat\n"),
        ("a.mp4.txt", "\ufeffa cat"),
        ("a.json", {"caption": "a cat"}),
        ("a.json", [{"text": "a cat"}]),
        ("a.json", {"cap": ["a cat"]}),
        ("a.csv", "caption\na cat\n"),
        ("captions.csv", "file,caption\na.mp4,a cat\n"),
        ("metadata.csv", "\ufefffile_name;text\r\na.mp4;a cat\r\n"),
        ("captions.tsv", "file\tcaption\na.mp4\ta cat\n"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": "a cat"}\n'),
        ("captions.json", {"a.mp4": "a cat"}),
        ("captions.json", {"a.mp4": {"caption": "a cat"}}),
        ("videos2caption.json", [{"path": "a.mp4", "cap": ["a cat"]}]),
    ],
)
def test_every_form_of_caption_is_found(folder: Path, name: str, content: object) -> None:
    put(folder, "a.mp4")
    put(folder, name, content)
    found = listing(folder)
    assert captions(found) == {"a.mp4": [(None, None, "a cat")]}
    assert found.rejected == []
    (file,) = found.files
    assert (file.size_bytes, file.sha256, file.media) == (len(MEDIA), digest_bytes(MEDIA), "video")
    assert file.captions[0].origin == name


def test_paired_line_files_keep_blank_lines_in_step(folder: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        put(folder, f"videos/{name}")
    put(folder, "videos.txt", "a.mp4\nb.mp4\nc.mp4\n")
    put(folder, "prompt.txt", "first\n\nthird\n")
    found = listing(folder)
    assert captions(found) == {"videos/a.mp4": [(None, None, "first")], "videos/c.mp4": [(None, None, "third")]}
    assert reasons(found) == [("videos/b.mp4", 2, "missing_caption")]


def test_paired_line_files_of_other_lengths_are_refused_whole(folder: Path) -> None:
    put(folder, "videos/a.mp4")
    put(folder, "videos.txt", "a.mp4\n")
    put(folder, "prompt.txt", "one\ntwo\n")
    assert reasons(listing(folder)) == [("videos.txt", None, "bad_table"), ("videos/a.mp4", None, "missing_caption")]


def test_tables_serve_subfolders_and_name_ranges_claims_and_licences(folder: Path) -> None:
    put(folder, "set/videos/a.mp4")
    rows = [
        {
            "path": "a.mp4",
            "cap": "start",
            "frame_idx": "0:65",
            "resolution": {"height": 720, "width": 1280},
            "fps": 29.97,
        },
        {"path": "a.mp4", "cap": "end", "first_frame": 65, "last_frame": 80, "duration": "PT01H02M37S"},
        {"path": "a.mp4", "cap": "whole", "licence": "CC0-1.0", "duration": -3},
    ]
    put(folder, "set/videos2caption.json", rows)
    found = listing(folder, licence="other")
    (file,) = found.files
    assert captions(found) == {"set/videos/a.mp4": [(0, 64, "start"), (65, 80, "end"), (None, None, "whole")]}
    assert (file.width, file.height, file.fps, file.duration_s, file.licence) == (1280, 720, 29.97, None, "CC0-1.0")


def test_range_of_frames_keeps_captions_that_touch_it(folder: Path) -> None:
    put(folder, "film.mp4")
    put(
        folder,
        "captions.csv",
        "file,first_frame,last_frame,caption\n" + "".join(f"film.mp4,{i * 10},{i * 10 + 9},c{i}\n" for i in range(5)),
    )
    (file,) = listing(folder, frames=[15, 30]).files
    assert [c.text for c in file.captions] == ["c1", "c2", "c3"]
    assert (file.first_frame, file.last_frame) == (15, 30)
    (only,) = listing(folder, frames=[90, 99]).rejected
    assert (only.reason, "5 outside frames [90, 99]" in only.detail) == ("missing_caption", True)


def test_nothing_disappears_in_silence(folder: Path) -> None:
    put(folder, "good.mp4")
    put(folder, "good.txt", "good")
    put(folder, "empty.mp4", b"")
    put(folder, "lonely.mp4")
    put(folder, "photo.jpg")
    put(folder, "notes.md", "hello")
    put(folder, ".hidden.mp4")
    put(
        folder,
        "captions.csv",
        "file,caption\ngood.mp4,again\ngood.mp4,again\n../up.mp4,x\ngone.mp4,x\n,x\ngood.mp4,\nphoto.jpg,x\n",
    )
    found = listing(folder)
    assert captions(found) == {"good.mp4": [(None, None, "good"), (None, None, "again")]}
    assert reasons(found) == [
        ("good.mp4", 2, "duplicate_caption"),
        ("../up.mp4", 3, "unsafe_name"),
        ("gone.mp4", 4, "missing_file"),
        ("captions.csv", 5, "bad_row"),
        ("good.mp4", 6, "missing_caption"),
        ("empty.mp4", None, "empty"),
        ("lonely.mp4", None, "missing_caption"),
    ]
    assert found.counts == {"rows_of_other_files": 1, "ignored": 2}


def test_wrong_ranges_are_rejected_with_their_row(folder: Path) -> None:
    put(folder, "a.mp4")
    put(
        folder,
        "captions.csv",
        "file,first_frame,last_frame,caption\na.mp4,9,3,x\na.mp4,1,,x\na.mp4,a,b,x\na.mp4,,,fine\n",
    )
    found = listing(folder)
    assert reasons(found) == [("a.mp4", 1, "bad_range"), ("a.mp4", 2, "bad_range"), ("a.mp4", 3, "bad_range")]
    assert captions(found) == {"a.mp4": [(None, None, "fine")]}


def test_bad_rows_of_a_table_leave_the_good_ones(folder: Path) -> None:
    nasty.bad_row_table(folder)
    found = listing(folder)
    assert [f.path for f in found.files] == ["row-1.mp4", "row-6.mp4"]
    assert reasons(found) == [
        ("captions.csv", 2, "bad_row"), ("captions.csv", 3, "bad_row"), ("row-5.mp4", 4, "missing_file"),
    ]  # fmt: skip


def test_odd_names_are_only_names(folder: Path) -> None:
    paths = nasty.odd_names(folder)
    found = listing(folder)
    assert sorted(f.path for f in found.files) == sorted(p.name for p in paths)
    assert found.rejected == []


def test_names_that_no_table_can_hold_are_rejected_readably(folder: Path) -> None:
    os.close(os.open(os.fsencode(folder) + b"/bad\xff.mp4", os.O_CREAT | os.O_WRONLY))
    put(folder, "line\nbreak.mp4")
    assert sorted(reasons(listing(folder))) == [
        ("bad\\udcff.mp4", None, "unsafe_name"), ("line\nbreak.mp4", None, "unsafe_name"),
    ]  # fmt: skip


def test_globs_choose_and_limit_stops(folder: Path) -> None:
    for name in ("a/1.mp4", "a/2.mp4", "b/c/3.mp4", "4.mp4"):
        put(folder, name)
    none = {"require_captions": False}
    assert [f.path for f in listing(folder, include=["**/*.mp4"], exclude=["a/*"], **none).files] == [
        "4.mp4",
        "b/c/3.mp4",
    ]
    assert [f.path for f in listing(folder, include=["*.mp4"], **none).files] == ["4.mp4"]
    limited = listing(folder, limit=2, **none)
    assert [f.path for f in limited.files] == ["4.mp4", "a/1.mp4"]
    assert limited.counts["over_limit"] == 2


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("**", "a/b.mp4", True), ("*", "a/b.mp4", False), ("**/*.mp4", "b.mp4", True), ("a/**", "a/b/c", True),
        ("?.mp4", "ab.mp4", False), ("[x].mp4", "[x].mp4", True), ("[x].mp4", "x.mp4", False),
    ],
)  # fmt: skip
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert bool(glob_regex(glob).match(path)) is matches


def test_images_are_a_kind_of_their_own(folder: Path) -> None:
    put(folder, "a.jpg")
    put(folder, "a.json", {"caption": "a photo", "licence": "CC-BY-4.0"})
    put(folder, "b.mp4")
    found = scan(ImagesConfig(), Storage(str(folder)))
    assert [(f.path, f.media, f.licence) for f in found.files] == [("a.jpg", "image", "CC-BY-4.0")]
    assert found.counts == {"ignored": 1}


def test_missing_directory_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"directory does not exist.*Next: correct `location`") as caught:
        listing(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_unreadable_file_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "a.mp4")
    put(folder, "a.txt", "x")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    assert [f.path for f in listing(folder).files] == ["a.mp4"]

    def refuse(self: DigestCache, path: Path, status: os.stat_result, mode: str = "full") -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(DigestCache, "digest", refuse)  # a root user cannot make an unreadable file
    assert listing(folder).rejected == [Rejected("a.mp4", None, "unreadable", "PermissionError: Permission denied")]


def test_remote_collection_lists_like_a_local_one(folder: Path) -> None:
    import fsspec

    put(folder, "x/a.mp4")
    put(folder, "x/captions.csv", "file,caption\na.mp4,a cat\n")
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*.*"):
        memory.pipe_file(f"/collection/{path.relative_to(folder)}", path.read_bytes())
    remote = scan(FolderConfig(), Storage("memory://collection"))
    assert remote.files == listing(folder).files
    assert remote.digest() == listing(folder).digest()


def test_probe_changes_when_and_only_when_the_listing_does(folder: Path) -> None:
    config = SourceConfig(name="mine", adapter=FolderConfig())
    places = {"mine": str(folder)}
    put(folder, "a.mp4")
    caption = put(folder, "a.txt", "a cat")
    first = probe(config, places)
    os.utime(folder / "a.mp4", (1, 1))
    assert probe(config, places) == first
    caption.write_text("a dog")
    second = probe(config, places)
    put(folder, "a.mp4", b"other bytes")
    assert len({first, second, probe(config, places)}) == 3


def test_digests_are_remembered_until_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataprep.sources.digests._SETTLED_NS", -1)
    path = put(folder, "a.bin", b"one")
    with DigestCache() as cache:
        assert cache.digest(path, path.stat()) == digest_bytes(b"one")
    with DigestCache() as cache:
        assert cache.digest(path, path.stat()) == digest_bytes(b"one")
        assert (cache.hits, cache.misses) == (1, 0)
    os.utime(put(folder, "a.bin", b"two"), ns=(0, path.stat().st_mtime_ns))
    with DigestCache() as cache:  # same size, same mtime: the change time tells
        assert cache.digest(path, path.stat()) == digest_bytes(b"two")


def test_fresh_files_and_broken_caches_are_hashed_again(folder: Path, tmp_path: Path) -> None:
    path = put(folder, "a.bin", b"one")
    for _ in range(2):
        with DigestCache() as cache:
            cache.digest(path, path.stat())
            assert cache.misses == 1
    broken = put(tmp_path, "broken.sqlite", b"this is no database" * 100)
    with DigestCache(broken) as cache:
        assert cache.digest(path, path.stat()) == digest_bytes(b"one")
