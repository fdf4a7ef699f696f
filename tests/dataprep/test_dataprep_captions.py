from itertools import pairwise
from pathlib import PurePosixPath

from dataprep.asset_corpus import CREDITS, captions_of, read_captions, sidecars
from dataprep.sources.tree import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from m4v.core.asset_catalog import ASSETS, files_of

MEDIA = [f for f in ASSETS.values() if PurePosixPath(f.path).suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES]


def test_captions_parse_and_ranges_are_ranges() -> None:
    rows = read_captions()
    assert len(rows) >= 221
    assert {r.kind for r in rows} == {"video", "video-negative", "photo"}
    for row in rows:
        assert row.caption
        assert row.caption == row.caption.strip()
        if row.kind == "photo":
            assert (row.first_frame, row.last_frame) == (None, None)
        else:
            assert row.first_frame is not None
            assert row.last_frame is not None
            assert 0 <= row.first_frame <= row.last_frame


def test_shots_of_one_file_do_not_overlap() -> None:
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in read_captions():
        if row.first_frame is not None and row.last_frame is not None:
            spans.setdefault((row.source, row.file), []).append((row.first_frame, row.last_frame))
    for file, ranges in spans.items():
        ordered = sorted(ranges)
        assert all(a[1] < b[0] for a, b in pairwise(ordered)), file


def test_what_a_filter_should_do_is_a_note_and_no_caption() -> None:
    negatives = [r for r in read_captions() if r.kind == "video-negative"]
    assert len(negatives) >= 5
    for row in negatives:
        assert "filter" in row.note
        assert "filter" not in row.caption
        assert "(" not in row.caption


def test_every_fetched_picture_and_clip_has_a_caption() -> None:
    rows = read_captions()
    bare = [f.path for f in MEDIA if not captions_of(f, rows) and not f.path.startswith("corpus/stamps/")]
    assert bare == []


def test_sidecars_are_the_same_every_time_and_credit_everything() -> None:
    made = sidecars(files_of("demo"))
    assert made == sidecars(reversed(files_of("demo")))
    assert "Blender Foundation" in made[f"corpus/film/{CREDITS}"].decode()
    table = made["corpus/film/captions.csv"].decode().splitlines()
    assert table[0] == "file,first_frame,last_frame,caption,licence,note"
    assert len(table) == 124
    assert all("CC-BY-3.0" in line for line in table[1:])
    assert b'"caption": "close-up of a ginger cat"' in made["corpus/photos/chelsea.json"]
