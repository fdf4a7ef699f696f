import json
from pathlib import Path

import curation_runs
import nasty
import pytest

from dataprep.sources import probe, scan
from dataprep.sources.config import FolderConfig, GeneratedConfig, SourceConfig
from dataprep.sources.listing import SourceListing
from m4v.core.storage import Storage


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


def listing(root: Path, **config: object) -> SourceListing:
    return scan(GeneratedConfig.model_validate(config), Storage(str(root)))


def texts(found: SourceListing) -> dict[str, list[str]]:
    return {f.path: [c.text for c in f.captions] for f in found.files}


def test_videos2caption(tmp_path: Path) -> None:
    rich = {
        "path": "video_001.mp4", "cap": ["A cat playing with yarn..."], "resolution": {"width": 832, "height": 480},
        "size": 123, "fps": 16.0, "duration": 4.8, "num_frames": 77, "seed": 1024, "model": "Wan2.1-T2V-14B",
    }  # fmt: skip
    put(tmp_path, {"videos/video_001.mp4": b"x", "videos/b.mp4": b"y", "videos2caption.json": [
        rich, {"path": "b.mp4", "cap": "plain"}]})  # fmt: skip
    found = listing(tmp_path, model="other", model_version="1.0")
    assert found.rejected == []
    assert texts(found) == {"videos/b.mp4": ["plain"], "videos/video_001.mp4": ["A cat playing with yarn..."]}
    plain, first = found.files
    assert first.extra == {
        "model": "Wan2.1-T2V-14B", "model_version": "1.0", "seed": 1024, "frames_claimed": 77,
        "prompt": "A cat playing with yarn...",
    }  # fmt: skip
    assert (first.width, first.height, first.fps, first.duration_s) == (832, 480, 16.0, 4.8)
    assert plain.extra == {"model": "other", "model_version": "1.0", "prompt": "plain"}


@pytest.mark.parametrize("name", ["prompt.txt", "prompts.txt", "captions.txt", "caption.txt"])
def test_line_files_keep_their_pairs(tmp_path: Path, name: str) -> None:
    clips = {f"videos/{n}.mp4": b"%d" % n for n in range(4)}
    put(tmp_path, {**clips, "videos.txt": "".join(f"videos/{n}.mp4\r\n" for n in range(4)) + "\n",
                   name: "zero\none\u2028still one\n\nthree\n\n\n"})  # fmt: skip
    found = listing(tmp_path)
    assert texts(found) == {"videos/0.mp4": ["zero"], "videos/1.mp4": ["one still one"], "videos/3.mp4": ["three"]}
    assert [(r.path, r.row, r.reason) for r in found.rejected] == [("videos/2.mp4", 3, "missing_caption")]


def test_line_files_of_unequal_length_pair_nothing(tmp_path: Path) -> None:
    put(tmp_path, {"a.mp4": b"a", "b.mp4": b"b", "videos.txt": "a.mp4\n\nb.mp4\n", "prompt.txt": "first\nlost\n"})
    found = listing(tmp_path)
    assert found.files == []
    assert ("videos.txt", "bad_table") in [(r.path, r.reason) for r in found.rejected]
    (tmp_path / "prompt.txt").write_text("first\nlost\nlast\n")
    found = listing(tmp_path)
    assert texts(found) == {"a.mp4": ["first"], "b.mp4": ["last"]}
    assert [(r.row, r.reason) for r in found.rejected] == [(2, "bad_row")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text,seed,guidance_scale,negative_prompt\na.mp4,a fox,00042,7.5,blurry\n"),
        ("metadata.jsonl", {"file_name": "a.mp4", "text": "a fox", "seed": 42,
                             "cfg": 7.5, "negative_prompt": " blurry"}),
        ("metadata.json", [{"file_name": "a.mp4", "prompt": "a fox", "seed": "42", "guidance": 7.5,
                            "negative_prompt": "blurry"}]),
        ("a.json", {"caption": "a fox", "seed": 42, "guidance_scale": 7.5, "negative_prompt": " blurry\n"}),
    ],
)  # fmt: skip
def test_provenance_of_every_layout(tmp_path: Path, name: str, content: object) -> None:
    put(tmp_path, {"a.mp4": b"a", name: content})
    (file,) = listing(tmp_path).files
    assert [c.text for c in file.captions] == ["a fox"]
    assert {**file.extra, "guidance": float(str(file.extra["guidance"]))} == {
        "seed": 42, "guidance": 7.5, "negative_prompt": "blurry", "prompt": "a fox",
    }  # fmt: skip


def test_captions_that_differ_from_the_prompt(tmp_path: Path) -> None:
    row = {"file_name": "a.mp4", "caption": "a red fox runs over snow", "prompt": "fox, snow", "prompt_id": "p7"}
    put(tmp_path, {"a.mp4": b"a", "metadata.jsonl": json.dumps(row)})
    (file,) = listing(tmp_path).files
    assert [c.text for c in file.captions] == ["a red fox runs over snow"]
    assert file.extra == {"prompt": "fox, snow", "prompt_id": "p7"}


def test_same_stem_pairs_of_both_media_and_odd_names(tmp_path: Path) -> None:
    put(tmp_path, {"-a.v1.mp4": b"a", "-a.v1.txt": "a dash", "b.png": b"b", "b.txt": "a still", "c.txt": "no media"})
    found = listing(tmp_path)
    assert [(f.path, f.media) for f in found.files] == [("-a.v1.mp4", "video"), ("b.png", "image")]
    assert found.counts["ignored"] == 1
    assert len(listing(tmp_path, require_captions=False, exclude=["*.png"]).files) == 1


def test_a_plain_folder_keeps_nothing_of_the_kind(tmp_path: Path) -> None:
    put(tmp_path, {"a.mp4": b"a", "a.json": {"caption": "a fox", "seed": 42}})
    assert scan(FolderConfig(), Storage(str(tmp_path))).files[0].extra == {}


def test_preprocessed_latents_are_no_videos(tmp_path: Path) -> None:
    row = {"latent_path": "a.pt", "prompt_embed_path": "a.pt", "caption": "a fox", "length": 20}
    put(tmp_path, {"latent/a.pt": b"x", "prompt_embed/a.pt": b"x", "videos2caption.json": [row]})
    found = listing(tmp_path)
    assert found.files == []
    assert [(r.row, r.reason) for r in found.rejected] == [(1, "bad_row")]


def test_generated_clips_go_through_source_and_curate(tmp_path: Path) -> None:
    root = tmp_path / "made"
    for n in range(2):
        nasty.good_clip(root / "videos" / f"{n}.mp4", None, seed=n)
    put(root, {"videos.txt": "videos/0.mp4\nvideos/1.mp4\n", "prompt.txt": "a red square\n\n"})
    listed = curation_runs.list_source(tmp_path / "1", "wan", root, {"kind": "generated", "model": "Wan2.1"})
    made = curation_runs.context(
        tmp_path / "2", "curate", curation_runs.CHEAP, curation_runs.inputs(listed), {"wan": str(root)}
    )
    found = curation_runs.curated(made)
    assert [(c["path"], c["captions"]) for c in found.kept()] == [("videos/0.mp4", ["a red square"])]
    assert found.reasons() == {"1.mp4": "missing_caption"}


def test_probe_sees_a_changed_prompt(tmp_path: Path) -> None:
    put(tmp_path, {"a.mp4": b"a", "a.txt": "one"})
    config = SourceConfig(name="g", adapter=GeneratedConfig())
    before = probe(config, {"g": str(tmp_path)})
    put(tmp_path, {"a.txt": "two"})
    assert probe(config, {"g": str(tmp_path)}) != before
