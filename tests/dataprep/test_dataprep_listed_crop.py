"""A collection's crop rectangle: from its row to the pixels that are encoded, and refused where it makes no sense."""

import json
from pathlib import Path

import numpy as np
import pytest
from curation_runs import CHEAP, Curated, context, curated, inputs, list_source
from PIL import Image

from dataprep.encode.clips import kept_clips
from dataprep.encode.jobs import ClipMedia, read_frames
from dataprep.encode_config import BucketConfig
from dataprep.media.geometry import Box
from dataprep.media.listed_crop import ListedCrop, joint, scaled
from dataprep.media.location import MediaFile
from dataprep.quarantine import ItemError
from m4v.video_io import write_mp4

CONFIG = {
    **CHEAP, "shots": {"detector": "none"}, "dedup": {"exact": False, "perceptual": False},
    "filters": {**CHEAP["filters"], "min_motion": None, "min_sharpness": None},
}  # fmt: skip


def halves(frames: int = 30) -> np.ndarray:
    """128x192: the left half red, the right half blue, a bright square moving in each."""
    clip = np.zeros((frames, 128, 192, 3), np.uint8)
    clip[:, :, :96], clip[:, :, 96:] = (200, 30, 30), (30, 30, 200)
    for t in range(frames):
        for left in (8, 104):
            clip[t, 40:64, left + t : left + 24 + t] = (240, 240, 40)
    return clip


def collection(root: Path, rows: list[dict[str, object]]) -> Path:
    root.mkdir(parents=True)
    for row in rows:
        path = root / str(row["path"])
        if path.suffix == ".png":
            Image.fromarray(halves(1)[0]).save(path)
        else:
            write_mp4(path, halves(), 24)
    (root / "anno.json").write_text(json.dumps(rows))
    (root / "merge_data.txt").write_text(".,anno.json\n")
    return root


def run(tmp_path: Path, rows: list[dict[str, object]]) -> Curated:
    root = collection(tmp_path / "in", rows)
    listed = list_source(tmp_path / "listed", "osp", root, {"kind": "opensora_plan"})
    return curated(context(tmp_path / "run", "curate", CONFIG, inputs(listed), {"osp": str(root)}))


def test_a_rows_crop_is_what_is_encoded(tmp_path: Path) -> None:
    size = {"width": 384, "height": 256}  # annotated at twice the size
    found = run(
        tmp_path,
        [
            {"path": "left.mp4", "cap": ["a"], "resolution": size, "crop": [0, 192, 0, 256]},
            {"path": "whole.mp4", "cap": ["b"], "resolution": size, "crop": [0, 384, 0, 256], "cut": [1, 30]},
            {"path": "still.png", "cap": ["c"], "resolution": size, "crop": [192, 384, 0, 256]},
            {"path": "other.mp4", "cap": ["d"], "resolution": {"width": 90, "height": 90}, "crop": [0, 9, 0, 9]},
        ],
    )
    rows = {Path(c["path"]).name: c for c in found.clips}
    assert {name: c["crop"] for name, c in rows.items()} == {
        "left.mp4": [0, 0, 96, 128], "whole.mp4": [0, 0, 192, 128], "still.png": [96, 0, 192, 128],
    }  # fmt: skip
    assert rows["left.mp4"]["score_letterbox"] == 0.0
    assert rows["left.mp4"]["transforms"][-1:] == rows["still.png"]["transforms"][-1:] == ["cropped:listed"]
    assert "cropped:listed" not in rows["whole.mp4"]["transforms"]
    (gone,) = found.quarantine
    assert (gone.path, gone.reason) == ("other.mp4", "crop_mismatch")
    assert "90x90" in gone.detail
    clips = {clip.path: clip for clip in kept_clips(found.directory / "clips.parquet")}
    for name, colour in (("left.mp4", 0), ("still.png", 2)):
        picture = _encoded(clips[name], tmp_path / "in")[0]
        assert picture[:8].reshape(-1, 3).mean(0).argmax() == colour
        assert picture[:8, :, 2 - colour].max() < 100  # nothing of the other half


def _encoded(clip, root: Path) -> np.ndarray:
    buckets = BucketConfig(frames=(9,), sizes=((64, 64),))
    file = MediaFile(str(root), clip.path, clip.size_bytes, clip.source_digest, False, str(root / "cache"))
    fps = clip.sampling_fps(buckets)
    end = clip.first_frame + clip.frames
    return read_frames(ClipMedia(file, clip.first_frame, end, clip.crop, fps, tuple(clip.buckets(buckets))))[0]


def test_boxes() -> None:
    assert scaled(Box(1, 1, 9, 9), (10, 10), (15, 5)) == (2, 1, 13, 4)  # inwards
    assert joint(Box(0, 0, 50, 50), Box(10, 60, 40, 90)) == (0, 0, 50, 50)  # only bars inside
    assert joint(Box(0, 0, 50, 50), Box(10, 0, 90, 90)) == (10, 0, 50, 50)
    anamorphic = ListedCrop(Box(0, 0, 360, 576), 720, 576)
    assert anamorphic.within(768, 576, (720, 576)) == (0, 0, 384, 576)
    with pytest.raises(ItemError, match="720x576 picture, this one is 1024x576"):
        anamorphic.within(1024, 576)
    with pytest.raises(ItemError, match="not inside 64x64"):
        ListedCrop(Box(0, 0, 65, 64)).within(64, 64)
