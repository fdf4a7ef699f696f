"""The curate stage on real and generated files: quarantine, rules, captions, resume, equal bytes everywhere."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nasty
import numpy as np
import pytest
from curation_runs import CHEAP, Curated, context, curated, inputs, list_source
from PIL import Image

from dataprep.curate_config import CurateConfig, FilterConfig, weights_of
from dataprep.quarantine import QuarantineRow, Reason, check_rate, read_quarantine, write_quarantine
from m4v.core.asset_catalog import asset_path
from m4v.core.errors import ConfigError, DataIntegrityError, Drained
from m4v.core.stage import InputRef, Resources
from m4v.video_io import encode_mp4

FOLDER: dict[str, Any] = {"kind": "folder", "require_captions": False, "licence": "CC0-1.0"}
SMALL = {**CHEAP, "filters": {**CHEAP["filters"], "min_motion": None}}


def cheap(**changes: Any) -> dict[str, Any]:
    """The cheap config with sections changed key by key."""
    merged = {k: {**v, **changes.pop(k, {})} for k, v in SMALL.items()}
    return merged | changes


@pytest.fixture(scope="module")
def nasty_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InputRef]:
    folder = nasty.corpus(tmp_path_factory.mktemp("nasty"))
    return folder, list_source(tmp_path_factory.mktemp("listed"), "wild", folder, FOLDER)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InputRef]:
    folder = asset_path("corpus/street/bikes.mp4").parent
    adapter = {**FOLDER, "include": ["bikes.mp4"]}
    return folder, list_source(tmp_path_factory.mktemp("listed"), "street", folder, adapter)


def curate(work: Path, config: dict[str, Any], *sources: tuple[Path, InputRef], **options: Any) -> Curated:
    references = inputs(*(reference for _, reference in sources))
    places = {reference.name: str(folder) for folder, reference in sources}
    return curated(context(work, "curate", config, references, places, **options))


@pytest.fixture(scope="module")
def wild(nasty_source: tuple[Path, InputRef], tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curate(tmp_path_factory.mktemp("wild"), cheap(), nasty_source)


def test_every_nasty_file_is_quarantined_with_its_own_reason(wild: Curated) -> None:
    reasons = wild.reasons()
    assert set(reasons) == set(nasty.EXPECTED)
    for name, expected in nasty.EXPECTED.items():
        assert reasons[name] in expected, name
    assert sorted(Path(c["path"]).name for c in wild.kept()) == sorted(nasty.GOOD)


def test_the_artifact_explains_every_clip(wild: Curated) -> None:
    for clip in wild.clips:
        preview = Image.open(wild.directory / "previews" / f"{clip['clip_id']}.jpg")
        assert preview.size[1] == 108
        assert preview.size[0] == 4 * 144
        assert clip["captions"]
        assert clip["licence"] == "CC0-1.0"
        assert clip["score_motion"] > 0
        assert clip["score_text"] is None
    # The blank caption is a rejected row of the source, and its file is listed without one.
    assert wild.funnel[0]["in"] == len(nasty.EXPECTED) + len(nasty.GOOD) + 1
    assert wild.funnel[-1]["out"] == len(wild.kept())
    assert all(s["in"] - sum(s["dropped_by_reason"].values()) == s["out"] for s in wild.funnel)
    summary = wild.manifest.summary
    assert summary["kept"] == 2
    assert summary["quarantined"] == len(nasty.EXPECTED) + 1
    text = (wild.directory / "clips.parquet").read_bytes() + (wild.directory / "quarantine.parquet").read_bytes()
    assert str(wild.directory.parent).encode() not in text


def test_rejected_rows_of_a_source_are_in_the_quarantine(tmp_path: Path) -> None:
    nasty.bad_row_table(tmp_path / "rows")
    listed = list_source(tmp_path / "listed", "rows", tmp_path / "rows", FOLDER)
    result = curate(tmp_path / "run", cheap(), (tmp_path / "rows", listed))
    assert sorted(Path(c["path"]).name for c in result.kept()) == ["row-1.mp4", "row-6.mp4"]
    rejected = [q for q in result.quarantine if q.step == "source"]
    assert sum(q.reason == "bad_row" for q in rejected) == 2
    assert all(q.source == "rows" for q in rejected)
    assert result.funnel[0]["dropped_by_reason"]["bad_row"] == 2


@pytest.fixture(scope="module")
def bikes(street: tuple[Path, InputRef], tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curate(tmp_path_factory.mktemp("bikes"), cheap(), street)


def test_real_footage_becomes_captioned_shots(bikes: Curated) -> None:
    spans = [(c["first_frame"], c["frames"]) for c in bikes.clips]
    assert spans == [(0, 28), (32, 42), (78, 57), (139, 46), (189, 51)]
    assert "cyclist" in bikes.clips[2]["captions"][0]
    assert all(c["kept"] and len(c["captions"]) == 1 for c in bikes.clips)
    assert bikes.clips[1]["start_us"] == 32 * 40_000
    assert bikes.clips[1]["end_us"] == 74 * 40_000
    detail = "no caption covers frames 244..249"
    lost = QuarantineRow("street", "bikes.mp4", "bikes.mp4", Reason.MISSING_CAPTION, detail, "clip_captions")
    assert bikes.quarantine == [lost]


def test_more_workers_give_equal_bytes(both: str, nasty_source: Any, street: Any, tmp_path: Path) -> None:
    again = curate(tmp_path, cheap(), nasty_source, street, resources=Resources(workers=3))
    assert again.manifest.artifact_id == both


@pytest.fixture(scope="module")
def both(nasty_source: Any, street: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return curate(tmp_path_factory.mktemp("both"), cheap(), nasty_source, street).manifest.artifact_id


def stamps(items: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in items.rglob("*") if p.is_file()}


def test_new_thresholds_recompute_nothing(street: tuple[Path, InputRef], tmp_path: Path) -> None:
    items = tmp_path / "items"
    first = curate(tmp_path / "one", cheap(), street, items=items)
    before = stamps(items)
    strict = cheap(filters={"min_motion": 20.0, "min_frames": 45, "min_sharpness": 240.0}, dedup={"max_distance": 2})
    second = curate(tmp_path / "two", strict, street, items=items)
    assert stamps(items) == before
    rules = [c["drop_rule"] for c in second.clips]
    assert rules == ["too_short", "too_short", None, "static", None]
    scores = [{k: v for k, v in c.items() if k not in ("kept", "drop_rule")} for c in second.clips]
    assert scores == [{k: v for k, v in c.items() if k not in ("kept", "drop_rule")} for c in first.clips]


def test_cutting_differently_measures_only_the_new_clips(street: tuple[Path, InputRef], tmp_path: Path) -> None:
    items = tmp_path / "items"
    curate(tmp_path / "one", cheap(), street, items=items)
    before = stamps(items)
    result = curate(tmp_path / "two", cheap(shots={"max_frames": 30}), street, items=items)
    assert max(c["frames"] for c in result.clips) <= 30
    new = set(stamps(items)) - set(before)
    assert new
    assert all("curate-clip" in path for path in new)


def test_a_frame_range_uses_the_measurements_of_the_whole(tmp_path: Path, street: tuple[Path, InputRef]) -> None:
    folder = street[0]
    items = tmp_path / "items"
    curate(tmp_path / "whole", cheap(), street, items=items)
    before = {p for p in stamps(items) if "segment" in p}
    ranged = list_source(
        tmp_path / "listed", "street", folder, {**FOLDER, "include": ["bikes.mp4"], "frames": [40, 150]}
    )
    part = curate(tmp_path / "part", cheap(filters={"min_frames": 5}), (folder, ranged), items=items)
    assert {p for p in stamps(items) if "segment" in p} == before
    assert [(c["first_frame"], c["first_frame"] + c["frames"]) for c in part.clips] == [(40, 74), (78, 135), (139, 151)]
    beyond = list_source(
        tmp_path / "beyond", "street", folder, {**FOLDER, "include": ["bikes.mp4"], "frames": [900, 950]}
    )
    with pytest.raises(DataIntegrityError, match=r"no clip is kept of 1 files: \{'missing_caption': 1\}"):
        curate(tmp_path / "none", cheap(), (folder, beyond), items=items)


def test_clips_without_caption_can_be_dropped_with_their_scores(nasty_source: Any, tmp_path: Path) -> None:
    result = curate(tmp_path, cheap(missing_caption="drop"), nasty_source)
    dropped = [c for c in result.clips if c["drop_rule"] == "missing_caption"]
    assert sorted(Path(c["path"]).name for c in dropped) == ["blank.mp4", "uncaptioned.mp4"]
    assert all(c["score_sharpness"] > 0 and c["captions"] == [] for c in dropped)
    assert "uncaptioned.mp4" not in result.reasons()


def test_copies_in_other_containers_and_sources_are_dropped(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    nasty.good_clip(one / "a.mp4", count=48, height=96, width=128)
    data = (one / "a.mp4").read_bytes()
    nasty.with_caption(two / "b.mp4", data)
    nasty.with_caption(two / "c.mp4", encode_mp4(nasty.frames(48, 96, 128), 24, crf=30))
    pictures = nasty.frames(48, 96, 128)[8:40]
    nasty.with_caption(two / "cut.mp4", encode_mp4(pictures, 24, crf=20))
    nasty.good_clip(two / "other.mp4", count=48, height=96, width=128, seed=77)
    sources = [(f, list_source(tmp_path / f"listed-{f.name}", f.name, f, FOLDER)) for f in (one, two)]
    config = cheap(filters={"min_sharpness": None, "max_brisque": None})
    result = curate(tmp_path / "run", config, *sources)
    rules = {Path(c["path"]).name: c["drop_rule"] for c in result.clips}
    near = "duplicate_near"
    assert rules == {"a.mp4": None, "b.mp4": "duplicate_exact", "c.mp4": near, "cut.mp4": near, "other.mp4": None}
    by_name = {Path(c["path"]).name: c for c in result.clips}
    assert by_name["cut.mp4"]["duplicate_of"] == by_name["a.mp4"]["clip_id"]
    assert by_name["a.mp4"]["content_digest"] == by_name["b.mp4"]["content_digest"]


def test_letterboxed_pictures_are_cropped_and_bad_ones_dropped(tmp_path: Path) -> None:
    good = nasty.frames(30, 128, 192)
    boxed = good.copy()
    boxed[:, :16] = boxed[:, -16:] = 0
    cases = {
        "boxed": boxed,
        "black": np.zeros_like(good),
        "still": np.repeat(good[:1], 30, axis=0),
        "white": np.full_like(good, 255),
        "short": good[:9],
        "flashing": np.stack([f // (1 + 3 * (k % 2)) for k, f in enumerate(good)]),
    }
    for name, pictures in cases.items():
        nasty.with_caption(tmp_path / "in" / f"{name}.mp4", encode_mp4(pictures, 24, crf=8))
    listed = list_source(tmp_path / "listed", "odd", tmp_path / "in", FOLDER)
    config = cheap(shots={"detector": "none"}, filters={"min_sharpness": 5.0})
    result = curate(tmp_path / "run", config, (tmp_path / "in", listed))
    rules = {Path(c["path"]).stem: c["drop_rule"] for c in result.clips}
    assert rules == {
        "boxed": None, "black": "black", "still": "frozen", "white": "overexposed", "short": "too_short",
        "flashing": "flashing",
    }  # fmt: skip
    crop = next(c for c in result.clips if "boxed" in c["path"])["crop"]
    assert crop[0] == 0
    assert crop[2] == 192
    assert 16 <= crop[1] <= 20
    assert 108 <= crop[3] <= 112


def test_images_take_the_rules_that_fit_them(tmp_path: Path) -> None:
    folder = asset_path("corpus/photos/coffee.png").parent
    names = ["coffee.png", "cheetah.jpg", "chelsea.png"]
    listed = list_source(tmp_path / "photos", "photos", folder, {"kind": "images", "include": names})
    bad = tmp_path / "bad"
    bad.mkdir()
    Image.open(folder / "coffee.png").convert("RGB").resize((300, 200)).save(bad / "copy.jpg", quality=60)
    Image.new("RGB", (200, 200), (90, 90, 90)).save(bad / "flat.png")
    Image.new("RGB", (40, 40), (9, 200, 90)).save(bad / "tiny.png")
    (bad / "cut.png").write_bytes((folder / "coffee.png").read_bytes()[:9000])
    for path in list(bad.iterdir()):
        path.with_suffix(".txt").write_text("a picture")
    other = list_source(tmp_path / "listed", "bad", bad, {"kind": "images"})
    config = cheap(signals={"nsfw": True}, filters={"max_nsfw": 0.5, "min_side": 96})
    result = curate(tmp_path / "run", config, (folder, listed), (bad, other))
    rules = {c["path"]: c["drop_rule"] for c in result.clips}
    assert rules == {
        **dict.fromkeys(names), "copy.jpg": "duplicate_near", "flat.png": "blurry", "tiny.png": "too_small"
    }  # fmt: skip
    assert result.reasons() == {"cut.png": "truncated"}
    image = result.kept()[0]
    assert (image["media"], image["frames"], image["start_us"], image["end_us"], image["fps"]) == (
        "image",
        1,
        0,
        0,
        0.0,
    )
    assert image["score_nsfw"] < 0.1
    assert image["score_motion"] is None


def test_drawn_clips_pass_content_rules_and_perceptual_dedup(tmp_path: Path) -> None:
    adapter = {
        "kind": "synthetic", "count": 4, "stills": 2, "frames": 17, "size": [64, 64], "backgrounds": ["white", "black"],
        "motions": ["right"],
    }  # fmt: skip
    listed = list_source(tmp_path / "drawn", "drawn", None, adapter)
    made = context(
        tmp_path / "run", "curate", {"filters": {"min_side": 64}, "shots": {"detector": "none"}}, inputs(listed)
    )
    result = curated(made)
    assert [c["drop_rule"] for c in result.clips] == [None] * 6
    assert all(c["crop"] == [0, 0, 64, 64] and c["score_nsfw"] is None for c in result.clips)


def test_models_score_key_frames(tmp_path: Path) -> None:
    folder = asset_path("corpus/street/a.mp4").parent
    listed = list_source(
        tmp_path / "listed", "cards", folder, {**FOLDER, "include": ["a.mp4", "carphone_pristine.mp4"]}
    )
    config = {"shots": {"detector": "histogram"}, "signals": {"key_frames": 1}}
    result = curate(tmp_path / "run", config, (folder, listed))
    card = next(c for c in result.clips if c["path"] == "a.mp4" and c["frames"] > 100)
    assert card["drop_rule"] == "text"
    assert 0.02 < card["score_text"] < 0.06
    man = next(c for c in result.clips if c["path"] == "carphone_pristine.mp4")
    assert man["kept"]
    assert man["score_nsfw"] < 0.1
    assert man["score_brisque"] < 40
    assert (man["width"], man["height"]) == (193, 144)


def test_a_quarantine_rate_past_its_limit_fails_the_stage(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    nasty.good_clip(folder / "good.mp4")
    for k in range(20):
        nasty.with_caption(folder / f"bad-{k}.mp4", f"<html>{k}</html>".encode())
    listed = list_source(tmp_path / "listed", "wild", folder, FOLDER)
    with pytest.raises(DataIntegrityError, match="20 of 21 items were quarantined, more than the limit of 50%"):
        curate(tmp_path / "run", cheap(), (folder, listed))
    assert len(curate(tmp_path / "again", cheap(max_quarantine_rate=1.0), (folder, listed)).kept()) == 1


def test_files_that_change_after_listing_are_quarantined(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("kept", "grown", "gone", "swapped"):
        nasty.good_clip(folder / f"{name}.mp4", seed=len(name) + ord(name[0]))
    listed = list_source(tmp_path / "listed", "wild", folder, FOLDER)
    (folder / "gone.mp4").unlink()
    (folder / "grown.mp4").write_bytes((folder / "grown.mp4").read_bytes() + b"more")
    data = bytearray((folder / "swapped.mp4").read_bytes())
    data[-1] ^= 255
    (folder / "swapped.mp4").write_bytes(data)
    result = curate(tmp_path / "run", cheap(), (folder, listed))
    assert result.reasons() == {
        "gone.mp4": "missing_file", "grown.mp4": "source_changed", "swapped.mp4": "source_changed"
    }  # fmt: skip


RUN = """
import json, sys
from pathlib import Path
import curation_runs, time
from curation_runs import context, curated
from m4v.core.stage import InputRef, Resources
if __name__ == "__main__":
    work, items, config, reference, folder = sys.argv[1:]
    if work.endswith("killed"):
        curation_runs._publish = lambda *_: time.sleep(600)
    made = context(Path(work), "curate", json.loads(config), (InputRef.model_validate_json(reference),),
                   {"street": folder}, Resources(workers=2), Path(items))
    print(curated(made).manifest.artifact_id)
"""


def test_a_killed_run_goes_on_where_it_was(bikes: Curated, street: tuple[Path, InputRef], tmp_path: Path) -> None:
    """SIGKILL of the whole process group after the first clip is measured; the next run repeats nothing of it."""
    import json

    folder, reference = street
    script = tmp_path / "run.py"
    script.write_text(RUN)
    items = tmp_path / "items"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    arguments = [json.dumps(cheap()), inputs(reference)[0].model_dump_json(), str(folder)]

    def start(work: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(script), str(tmp_path / work), str(items), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)

    killed = start("killed")
    deadline = time.monotonic() + 300
    while not [p for p in stamps(items) if "curate-clip" in p and not p.endswith(".tmp")]:
        assert time.monotonic() < deadline
        assert killed.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = {p: s for p, s in stamps(items).items() if not p.endswith(".tmp")}
    assert not (tmp_path / "killed" / "staging" / "clips" / "manifest.json").exists()
    resumed = start("resumed")
    output, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0
    assert output.strip() == bikes.manifest.artifact_id
    after = stamps(items)
    assert all(after[path] == stamp for path, stamp in before.items())


def test_a_drain_stops_between_items_and_resumes(street: tuple[Path, InputRef], bikes: Curated, tmp_path: Path) -> None:
    folder, reference = street
    made = context(
        tmp_path / "one", "curate", cheap(), inputs(reference), {"street": str(folder)}, items=tmp_path / "items"
    )
    made.request_drain()
    with pytest.raises(Drained):
        curated(made)
    result = curate(tmp_path / "two", cheap(), street, items=tmp_path / "items")
    assert result.manifest.artifact_id == bikes.manifest.artifact_id


def test_two_sources_of_one_name_are_refused(street: tuple[Path, InputRef], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two sources have one name: 'street'"):
        curate(tmp_path, cheap(), street, street)


def test_thresholds_stay_out_of_measuring_identities() -> None:
    base = CurateConfig()
    changed = CurateConfig(filters=FilterConfig(min_frames=99, max_text=0.5), max_quarantine_rate=1.0)
    assert base.digest() != changed.digest()
    assert base.segment_identity() == changed.segment_identity()
    assert base.clip_identity() == changed.clip_identity()
    assert (
        base.segment_identity() != CurateConfig.model_validate({"shots": {"detector": "histogram"}}).segment_identity()
    )
    assert set(weights_of(base)) == {"transnetv2", "ppocr-det", "open-nsfw", "brisque", "brisque/ranges"}
    assert weights_of(CurateConfig.model_validate(CHEAP)) == {}


def test_a_rule_without_its_measurement_is_a_config_error() -> None:
    with pytest.raises(ValueError, match=r"filters.max_text needs signals.text"):
        CurateConfig.model_validate({"signals": {"text": False}})


def test_quarantine_tables_are_sorted_and_read_back(tmp_path: Path) -> None:
    rows = [
        QuarantineRow("b", "2", "p", "empty", "", "probe"),
        QuarantineRow("a", "1", "q", "text", "x" * 900, "probe"),
    ]
    write_quarantine(tmp_path / "one.parquet", rows)
    write_quarantine(tmp_path / "two.parquet", rows[::-1] + rows)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    back = read_quarantine(tmp_path / "one.parquet")
    assert [r.source for r in back] == ["a", "b"]
    assert len(back[0].detail) == 500
    check_rate(5, 10, 0.5, "here")
    with pytest.raises(DataIntegrityError, match="6 of 10"):
        check_rate(6, 10, 0.5, "here")
