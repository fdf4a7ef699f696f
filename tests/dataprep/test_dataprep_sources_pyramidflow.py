import json
from pathlib import Path

import pytest
from source_runs import publish

from dataprep.sources import scan
from dataprep.sources.config import PyramidFlowConfig
from dataprep.sources.listing import SourceListing, SourceReader
from dataprep.sources.pyramidflow import Line, export, lines_of_clips, lines_of_files
from m4v.core.errors import InputError
from m4v.core.storage import Storage

VIDEO = {
    "video": "webvid10m/train/010451_010500/23388121.mp4",
    "text": "the serene beauty of a valley with a river, mountains, and clouds",
    "latent": "webvid10m/train/010451_010500/23388121-latent-384-2.pt",
    "text_fea": "text_feature/webvid10m/train/010451_010500/23388121-text.pt",
}
IMAGE = {"image": "SAM_filter/000424/sa_4749867.jpg", "text": "a cityscape with a large body of water, ..."}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(root: Path, rows: list[dict[str, object]], name: str = "annotation/video_text.jsonl", tail: str = "") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(json.dumps(r) + "\n" for r in rows) + tail)
    for row in rows:
        path = root / str(row.get("video") or row.get("image") or "none")
        if not path.is_absolute() or path.is_relative_to(root):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"any bytes")
    return root


def listing(root: Path, **config: object) -> SourceListing:
    return scan(PyramidFlowConfig.model_validate(config), Storage(str(root)))


def test_lines_in_and_out_again(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {**VIDEO}, {"video": "pexels/8440980-uhd_3840_2160_25fps.mp4", "text": "strided", "frames": [0, 2, 4]},
        {"video": "OpenVid-1M/videos/qsXY7FkNFwE_2_0to743.mp4", "text": "a part", "frames": [3, 4, 5, 6]},
    ]  # fmt: skip
    make(tmp_path / "root", rows)
    make(tmp_path / "root", [{**IMAGE}], "annotation/image_text.jsonl")
    reader = SourceReader(publish(tmp_path / "work", {"kind": "pyramidflow"}, tmp_path / "root"))
    files = list(reader.files())
    assert [(f.media, f.first_frame, f.last_frame) for f in files] == [
        ("image", None, None), ("video", None, None), ("video", 0, 4), ("video", 3, 6),
    ]  # fmt: skip
    assert files[1].extra == {"latent": VIDEO["latent"], "text_fea": VIDEO["text_fea"]}
    assert files[2].extra == {"frames": [0, 2, 4]}
    target = tmp_path / "out" / "all.jsonl"
    assert export(lines_of_files(files), target) == 4
    assert [json.loads(line) for line in target.read_text().splitlines()] == [IMAGE, *rows]


def test_one_video_with_several_latents_and_captions(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": "a.mp4", "text": "one", "latent": "a-latent-384-0.pt"},
        {"video": "b.mp4"},
        {"video": "a.mp4", "text": "one", "latent": "a-latent-384-2.pt"},
        {"video": "a.mp4", "text": "two"},
    ]
    found = listing(make(tmp_path, rows), require_captions=False)
    assert [(f.path, [c.text for c in f.captions]) for f in found.files] == [("a.mp4", ["one", "two"]), ("b.mp4", [])]
    assert found.counts == {"rows": 4, "repeated_rows": 1}
    lines = [(line.path, line.text) for line in lines_of_files(found.files, every_caption=True)]
    assert lines == [("a.mp4", "one"), ("a.mp4", "two"), ("b.mp4", None)]
    assert Line("video", "b.mp4").fields() == {"video": "b.mp4"}
    assert [(r.path, r.reason) for r in listing(tmp_path).rejected] == [("b.mp4", "missing_caption")]


def test_nasty_lines(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": "../up.mp4", "text": "x"}, {"text": "x"}, {"video": "a.mp4", "text": "x", "frames": [3, 1]},
        {"video": "a.mp4", "text": "x", "frames": "0:9"}, {"video": "a.mp4", "text": "x", "frames": [-1, 2]},
        {"video": "gone.mp4", "text": "x"}, {"video": "a.mp4", "text": ["list", "of two"]},
    ]  # fmt: skip
    root = make(tmp_path / "root", rows, tail='{"video": "a.mp4", "te\n[1]\n\n')
    (root / "gone.mp4").unlink()
    found = listing(root)
    assert [(r.row, r.reason) for r in found.rejected] == [
        (1, "unsafe_name"), (2, "bad_row"), (3, "bad_range"), (4, "bad_range"), (5, "bad_range"), (8, "bad_row"),
        (9, "bad_row"), (6, "missing_file"),
    ]  # fmt: skip
    assert all("byte" in r.detail for r in found.rejected)
    assert [[c.text for c in f.captions] for f in found.files] == [["list", "of two"]]
    with pytest.raises(InputError, match="no annotation file found"):
        listing(tmp_path)


def test_media_below_a_folder(tmp_path: Path) -> None:
    make(tmp_path, [{"video": "a.mp4", "text": "x"}])
    (tmp_path / "media").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "media" / "a.mp4")
    assert [f.path for f in listing(tmp_path, media="media").files] == ["media/a.mp4"]


class _Clip:
    path, media, first_frame, frames, captions = "a.mp4", "video", 5, 3, ("one", "two")


def test_kept_clips_export_their_frames(tmp_path: Path) -> None:
    assert [line.fields() for line in lines_of_clips([_Clip()])] == [  # type: ignore[list-item]
        {"video": "a.mp4", "text": "one", "frames": [5, 6, 7]}
    ]
