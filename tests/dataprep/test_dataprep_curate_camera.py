"""What a camera and a codec do to clips, through the whole stage: shake, blocks, and copies inside black bars."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from curation_runs import CHEAP, Curated, context, curated, inputs, list_source
from nasty import with_caption

from dataprep.curate_config import DedupConfig, FilterConfig
from dataprep.curation.candidates import read_candidates
from dataprep.curation.filters import decide
from m4v.core.errors import DataIntegrityError
from m4v.video_io import encode_mp4

H, W, FRAMES = 96, 160, 36


def filmed(seed: int, shake: float = 0.0) -> np.ndarray:
    """A pan over a scene of blobs; `shake`: deviation of the camera's place from frame to frame, in pixels."""
    rng = np.random.default_rng(seed)
    scene = cv2.resize(rng.integers(0, 256, (24, 36, 3), np.uint8), (W + 80, H + 64), interpolation=cv2.INTER_CUBIC)
    places = np.array([[10 + k, 20 + k / 4] for k in range(FRAMES)]) + rng.normal(0, shake, (FRAMES, 2))
    return np.stack([cv2.getRectSubPix(scene, (W, H), (W / 2 + x, H / 2 + y)) for x, y in places])


def quantised(pictures: np.ndarray, quality: int) -> np.ndarray:
    made = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for p in pictures]
    return np.stack([cv2.imdecode(data, cv2.IMREAD_COLOR) for data in made])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    work = tmp_path_factory.mktemp("camera")
    bars = ((0, 0), (16, 16), (0, 0), (0, 0))
    for name, pictures, crf in (
        ("clean", filmed(1), 12), ("copy", np.pad(filmed(1), bars), 14), ("shaken", filmed(2, shake=4.0), 12),
        ("blocky", quantised(filmed(3), 2), 4), ("steady", filmed(4), 12),
    ):  # fmt: skip
        with_caption(work / "in" / f"{name}.mp4", encode_mp4(pictures, 24, crf=crf))
    listed = list_source(work / "listed", "films", work / "in", {"kind": "folder", "licence": "CC0-1.0"})
    filters = {**CHEAP["filters"], "max_blockiness": 2.0}
    config = {**CHEAP, "shots": {"detector": "none"}, "filters": filters}
    return curated(context(work / "run", "curate", config, inputs(listed), {"films": str(work / "in")}))


def rows(result: Curated) -> dict[str, dict[str, object]]:
    return {Path(str(c["path"])).stem: c for c in result.clips}


def test_shake_and_blocks_drop_clips_that_keep_their_scores(result: Curated) -> None:
    found = rows(result)
    assert {name: row["drop_rule"] for name, row in found.items()} == {
        "clean": None, "copy": "duplicate_near", "shaken": "jittery", "blocky": "blocky", "steady": None,
    }  # fmt: skip
    filters = FilterConfig()
    for name, row in found.items():
        assert (row["score_jitter"] > filters.max_jitter) == (name == "shaken")
        assert (row["score_blockiness"] > filters.max_blockiness) == (name == "blocky")
    (step,) = (s for s in result.funnel if s["step"] == "filters")
    assert step["dropped_by_reason"] == {"blocky": 1, "jittery": 1}


def test_a_letterboxed_copy_is_a_copy_of_its_original(result: Curated) -> None:
    clean, copied = rows(result)["clean"], rows(result)["copy"]
    assert copied["duplicate_of"] == clean["clip_id"]
    assert copied["score_letterbox"] > 0.2
    for name in ("motion", "sharpness", "brightness"):
        assert copied[f"score_{name}"] == pytest.approx(clean[f"score_{name}"], rel=0.15), name


def test_thresholds_are_tried_on_stored_scores_and_old_tables_have_none(result: Curated, tmp_path: Path) -> None:
    hashes = result.directory / "hashes.parquet"
    candidates = read_candidates(result.directory / "clips.parquet", hashes)
    cheap = FilterConfig.model_validate(CHEAP["filters"])
    loose = cheap.model_copy(update={"max_jitter": None, "max_blockiness": 50.0})
    rules = dict(zip(candidates.clip_ids, decide(candidates, loose, DedupConfig()).drop_rules, strict=True))
    assert sorted(str(r) for r in rules.values()) == ["None"] * 4 + ["duplicate_near"]
    old = tmp_path / "clips.parquet"
    pq.write_table(pq.read_table(result.directory / "clips.parquet").drop(["score_jitter", "score_blockiness"]), old)
    before = decide(read_candidates(old, hashes), cheap, DedupConfig())
    assert [r for r in before.drop_rules if r] == ["duplicate_near"]
    pq.write_table(pq.read_table(old).drop(["score_motion"]), old)
    with pytest.raises(DataIntegrityError, match="no such column"):
        decide(read_candidates(old, hashes), cheap, DedupConfig())
