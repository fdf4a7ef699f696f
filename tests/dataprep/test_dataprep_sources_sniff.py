import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import make_tar, make_zip, split
from pydantic import TypeAdapter

from dataprep.sources import scan
from dataprep.sources.config import AdapterConfig, FolderConfig, SyntheticConfig, WebVidConfig
from dataprep.sources.openvid import COLUMNS
from dataprep.sources.report import validate
from dataprep.sources.sniff import Sniffed, sniff
from m4v.core.errors import InputError
from m4v.core.storage import Storage

WEBVID = ["videoid", "contentUrl", "duration", "page_dir", "name"]
CONFIGS: TypeAdapter[AdapterConfig] = TypeAdapter(AdapterConfig)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def put(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def table(rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def webvid(root: Path) -> None:
    rows = [[str(n), f"https://example.com/{n}.mp4", "PT00H00M30S", "p", "a cat"] for n in range(4)]
    put(root, {"data/train/partitions/0000.csv": table([WEBVID, *rows]), "videos/p/0.mp4": b"x" * 100})


def openvid(root: Path) -> None:
    row = ["a.mp4", "a cat", "5", "1", "1", "static", "64", "24", "2.6"]
    put(root, {"data/train/OpenVid-1M.csv": table([list(COLUMNS), row])})
    split(make_zip(root / "OpenVid_part73.zip", {"a.mp4": b"x" * 5000}), 2)


def opensora(root: Path) -> None:
    rows = [{"path": "Fish/a.mp4", "frame_idx": "0:65", "cap": "a fish"}]
    put(root, {"anno_jsons/video_mixkit_65f_1.json": rows, "all_mixkit/Fish/a.mp4": b"x"})


def launch(root: Path) -> None:
    opensora(root)
    put(root, {"merge_data.txt": "all_mixkit,anno_jsons/video_mixkit_65f_1.json\n"})


def pyramidflow(root: Path) -> None:
    put(root, {"annotation/video_text.jsonl": '{"video": "a.mp4", "text": "a cat"}\n', "media/a.mp4": b"x"})


def laion(root: Path) -> None:
    root.mkdir()
    pq.write_table(pa.table({"URL": ["https://example.com/a.jpg"], "TEXT": ["a cat"]}), root / "part-0.parquet")


def img2dataset(root: Path) -> None:
    make_tar(root / "00000.tar", [("000000000.jpg", b"x"), ("000000000.txt", b"a cat")])
    data = {"url": ["https://e.com/a"], "caption": ["a cat"], "key": ["000000000"], "status": ["success"]}
    pq.write_table(pa.table(data), root / "00000.parquet")


def webdataset(root: Path) -> None:
    make_tar(root / "train" / "0.tar", [("a.mp4", b"x"), ("a.txt", b"a cat")])


def videos2caption(root: Path) -> None:
    put(root, {"videos/a.mp4": b"x", "videos2caption.json": [{"path": "a.mp4", "cap": "a cat"}]})


def lines(root: Path) -> None:
    put(root, {"videos/a.mp4": b"x", "videos.txt": "videos/a.mp4\n", "prompt.txt": "a cat\n"})


def metadata(root: Path) -> None:
    put(root, {"a.mp4": b"x", "metadata.jsonl": '{"file_name": "a.mp4", "text": "a cat", "seed": 3}\n'})


def sidecars(root: Path) -> None:
    put(root, {"deep/er/a.mp4": b"x", "deep/er/a.json": {"caption": "a cat", "model": "Wan2.1", "seed": 3}})


def folder(root: Path) -> None:
    put(root, {"clips/a.mp4": b"x", "clips/a.txt": "a cat"})


def images(root: Path) -> None:
    put(root, {"a.png": b"x", "a.txt": "a cat"})


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (webvid, "webvid"), (openvid, "openvid"), (opensora, "opensora_plan"), (launch, "opensora_plan"),
        (pyramidflow, "pyramidflow"), (laion, "laion"), (img2dataset, "laion"), (webdataset, "webdataset"),
        (videos2caption, "generated"), (lines, "generated"), (metadata, "generated"), (sidecars, "generated"),
        (folder, "folder"), (images, "images"),
    ],
)  # fmt: skip
def test_the_likeliest_guess_lists_the_collection(tmp_path: Path, make, kind: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "root")
    guesses = sniff(Storage(str(tmp_path / "root")))
    assert guesses[0].kind == kind
    assert [g.confidence for g in guesses] == sorted((g.confidence for g in guesses), reverse=True)
    config = CONFIGS.validate_python(dict(guesses[0].adapter or {}))
    found = scan(config, Storage(str(tmp_path / "root")))
    if make is laion:
        assert [r.reason for r in found.rejected] == ["missing_file"]
    else:
        assert [f.captions[0].text for f in found.files] in (["a cat"], ["a fish"])


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    put(tmp_path, {"latent/a.pt": b"x", "prompt_embed/a.pt": b"x"})
    (guess,) = sniff(Storage(str(tmp_path)))
    assert (guess.kind, guess.adapter) == ("preprocessed", None)
    pq.write_table(pa.table({"vae_latent_bytes": [b"x"]}), tmp_path / "a.parquet")
    assert "m4v data import --layout fastvideo" in sniff(Storage(str(tmp_path)))[0].why


def test_nothing_and_rubbish(tmp_path: Path) -> None:
    assert sniff(Storage(str(tmp_path))) == []
    put(
        tmp_path,
        {"a.csv": b"\xff\x00\n", "b.json": "{", "c.jsonl": "[1]\n", "d.parquet": b"x", "e.tar": b"x", "f.mp4": b"x"},
    )
    assert sniff(Storage(str(tmp_path))) == [
        Sniffed("folder", 0.3, "videos such as f.mp4, no captions seen beside them", {
            "kind": "folder", "require_captions": False}),
    ]  # fmt: skip
    with pytest.raises(InputError, match="directory does not exist"):
        sniff(Storage(str(tmp_path / "nowhere")))


def test_report_before_a_byte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(*_: object) -> str:
        raise AssertionError("media were read")

    monkeypatch.setattr("dataprep.sources.digests.digest_file", reads)
    monkeypatch.setattr("dataprep.sources.digests.stream_digest", reads)
    webvid(tmp_path)
    put(tmp_path, {"videos/p/1.mp4": b"y" * 300})
    path = tmp_path / "data/train/partitions/0000.csv"
    path.write_text(path.read_text() + '3,https://example.com/x,PT1S,p,"again"\n9,https://example.com/9.mp4,PT1S,p, \n')
    report = validate(WebVidConfig(), Storage(str(tmp_path)), encoder_fps=48.0, sample_fps=24.0)
    assert (report.kind, report.rows, report.accepted) == ("webvid", 6, 2)
    assert report.rejected == {"missing_file": 2, "duplicate_id": 1, "missing_caption": 1}
    (example,) = report.examples["duplicate_id"]
    assert (example.path, example.row) == ("p/3", 5)
    assert "row 5, byte" in example.detail
    estimate = report.estimate
    assert (estimate.clips, estimate.size_bytes, estimate.to_fetch) == (2, 400, 2)
    assert estimate.hours == pytest.approx(1 / 60)
    assert estimate.to_fetch_hours == pytest.approx(1 / 60)
    assert estimate.to_fetch_bytes_expected == 400
    assert estimate.gpu_hours == pytest.approx(1 / 60)  # two minutes of video at twice the speed
    assert json.loads(json.dumps(report.to_json()))["estimate"]["clips"] == 2


def test_estimate_of_files_without_a_claimed_length(tmp_path: Path) -> None:
    put(tmp_path, {"a.mp4": b"x", "b.mp4": b"x", "captions.csv": "file,caption,duration\na.mp4,x,36\nb.mp4,x,\n"})
    report = validate(FolderConfig(), Storage(str(tmp_path)))
    assert (report.rows, report.estimate.without_length, report.estimate.gpu_hours) == (2, 1, None)
    assert report.estimate.hours_expected == pytest.approx(0.02)
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,x\nb.mp4,x\n")
    assert validate(FolderConfig(), Storage(str(tmp_path)), encoder_fps=10).estimate.hours_expected is None


def test_estimate_of_spans_and_of_drawn_clips(tmp_path: Path) -> None:
    rows = [{"path": "a.mp4", "frame_idx": f"{n}:{n + 90}", "cap": "x", "fps": 30.0, "duration": 99} for n in (0, 90)]
    put(tmp_path, {"a.json": rows, "a.mp4": b"x" * 10})
    config = CONFIGS.validate_python({"kind": "opensora_plan", "sets": [{"annotation": "a.json"}]})
    estimate = validate(config, Storage(str(tmp_path))).estimate
    assert (estimate.clips, estimate.size_bytes) == (2, 10)
    assert estimate.hours == pytest.approx(6 / 3600)
    drawn = validate(SyntheticConfig(count=10, stills=2, frames=24, fps=24), None)
    assert (drawn.accepted, drawn.estimate.images) == (12, 2)
    assert drawn.estimate.hours == pytest.approx(10 / 3600)


def test_reports_of_archives_read_only_their_directories(tmp_path: Path) -> None:
    openvid(tmp_path)
    webdataset(tmp_path / "wds")
    config = CONFIGS.validate_python({"kind": "openvid", "archives": ["OpenVid*"], "identity": "full"})
    data = (tmp_path / "OpenVid_part73_partaa").read_bytes()
    (tmp_path / "OpenVid_part73_partaa").write_bytes(b"\0" * len(data))  # the directory is in the last part
    assert validate(config, Storage(str(tmp_path))).accepted == 1
    shards = CONFIGS.validate_python({"kind": "webdataset"})
    assert validate(shards, Storage(str(tmp_path / "wds"))).estimate.size_bytes == 1
