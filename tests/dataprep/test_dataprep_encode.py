import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import encode_support as support
import numpy as np
import pytest
import torch
from safetensors.torch import load

from dataprep.config import EncodeConfig
from dataprep.encode.jobs import psnr_db
from dataprep.quarantine import read_quarantine
from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.core.errors import DataIntegrityError, Drained, InputError
from m4v.core.ids import sample_id
from m4v.core.shard_index import iterate, member, read_index, read_member
from m4v.core.stage import Resources, StageContext
from m4v.text import open_text_encoder
from m4v.text.config import MiniLmConfig
from m4v.video_io import read_mp4

CONFIG: dict[str, object] = {
    "buckets": {"frames": [9, 17, 33], "sizes": [[64, 64], [64, 128]]},
    "text_encoder": {"slots": 16},
    "reconstructions": 2,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> support.Bench:
    return support.make_bench(tmp_path_factory.mktemp("encode"))


@pytest.fixture(scope="module")
def dataset(bench: support.Bench) -> Path:
    return bench.encode("plain", CONFIG)[0]


def _rows(dataset: Path) -> list[dict[str, object]]:
    return list(iterate(read_index(dataset / "index.parquet")))


def _member(dataset: Path, row: dict[str, object], name: str) -> bytes:
    return read_member(dataset / "shards", member(row, name))


def test_layout(dataset: Path):
    names = {p.relative_to(dataset).as_posix() for p in dataset.rglob("*") if p.is_file()}
    clips = [r["clip_id"] for r in json.loads((dataset / "reconstructions.json").read_text())["clips"]]
    assert names == {
        "index.parquet", "dataset.json", "quarantine.parquet", "null_text.safetensors", "reconstructions.json",
        "shards/000000.tar", "shards/000001.tar", "shards/000002.tar", *(f"reconstructions/{c}.mp4" for c in clips),
    }  # fmt: skip


def test_index_rows_name_clips_and_buckets(bench: support.Bench, dataset: Path):
    rows = {str(r["source_id"]): r for r in _rows(dataset)}
    sizes = {name: (r["bucket_t"], r["bucket_h"], r["bucket_w"], r["tokens"]) for name, r in rows.items()}
    assert sizes == {
        "video-0.mp4": (3, 8, 16, 96), "video-1.mp4": (3, 8, 16, 96), "video-2.mp4": (5, 8, 16, 160),
        "image-0.png": (1, 8, 8, 16), "image-1.png": (1, 8, 8, 16),
    }  # fmt: skip
    facts = json.loads((dataset / "dataset.json").read_text())
    for clip in bench.rows:
        row = rows[str(clip["source_id"])]
        assert row["clip_id"] == clip["clip_id"]
        assert row["captions"] == len(clip["captions"])
        bucket = {"image": "1x64x64", "video": f"{int(str(row['bucket_t'])) * 8 - 7}x64x128"}[str(clip["media"])]
        assert row["sample_id"] == sample_id(str(clip["clip_id"]), facts["encoder_digest"], bucket)


def test_latents_are_the_codec_of_the_frames(dataset: Path):
    """The file's own frames, scaled by hand: 80x128 covers 64x128 by cutting eight rows above and below."""
    row = next(r for r in _rows(dataset) if r["source_id"] == "video-2.mp4")
    stored = load(_member(dataset, row, "latent"))["mean"]
    assert stored.dtype == torch.bfloat16
    assert stored.shape == (16, 5, 8, 16)
    frames, _ = read_mp4(dataset.parents[2] / "media" / "video-2.mp4")
    expected = open_codec(DctCodecConfig()).encode(frames[:33, 8:72])
    # Two decoders convert colours with other roundings: compare pictures, and latents loosely.
    assert np.abs(stored.float().numpy() - expected).mean() < 0.05
    assert psnr_db(open_codec(DctCodecConfig()).decode(stored.float().numpy()), frames[:33, 8:72]) > 25


def test_text_members_hold_every_caption(bench: support.Bench, dataset: Path):
    row = next(r for r in _rows(dataset) if r["source_id"] == "video-1.mp4")
    text = load(_member(dataset, row, "text"))
    expected = open_text_encoder(MiniLmConfig(slots=16)).encode(["a square moves, take 1", "take 1"])
    assert torch.equal(text["embedding"], expected.embedding)
    assert torch.equal(text["mask"], expected.mask)
    assert torch.equal(text["pooled"], expected.pooled)


def test_meta_member(dataset: Path):
    row = next(r for r in _rows(dataset) if r["source_id"] == "video-0.mp4")
    meta = json.loads(_member(dataset, row, "meta"))
    assert meta["captions"] == ["a square moves, take 0", "take 0"]
    assert (meta["frames"], meta["height"], meta["width"], meta["fps"]) == (17, 64, 128, 24)
    assert meta["scores"] == {"motion": 1.5}
    assert meta["licence"] == "CC0-1.0"
    assert meta["source_digest"] == row["source_digest"]


def test_dataset_facts_and_null_text(dataset: Path):
    facts = json.loads((dataset / "dataset.json").read_text())
    assert (facts["samples"], facts["videos"], facts["images"], facts["captions"]) == (5, 3, 2, 8)
    assert facts["codec"]["digest"] == open_codec(DctCodecConfig()).digest
    assert facts["codec"]["normalisation"]["others"] == {"shift": -0.2343, "scale": 3.0986}
    counts = {(b["media"], b["frames"], b["height"], b["width"]): b["samples"] for b in facts["buckets"]}
    assert counts == {("image", 1, 64, 64): 2, ("video", 17, 64, 128): 2, ("video", 33, 64, 128): 1}
    null = load((dataset / "null_text.safetensors").read_bytes())
    expected = open_text_encoder(MiniLmConfig(slots=16)).encode([""])
    assert torch.equal(null["embedding"], expected.embedding)
    assert null["mask"].sum().item() == 2


def test_reconstructions_show_source_and_decoded_side_by_side(dataset: Path):
    report = json.loads((dataset / "reconstructions.json").read_text())
    assert [c["media"] for c in report["clips"]] == ["video", "video"]
    for clip in report["clips"]:
        frames, fps = read_mp4(dataset / clip["file"])
        assert frames.shape == (clip["frames"], 64, 256, 3)
        assert fps == clip["fps"] == 24
        # Through H.264 the two halves differ about as much as before it.
        assert psnr_db(frames[:, :, :128], frames[:, :, 128:]) == pytest.approx(clip["psnr_db"], abs=1.5)
        assert clip["psnr_db"] > 25


def _hits(context: StageContext) -> dict[str, object]:
    return {n: v for n, v in context.collected_metrics().items() if n.startswith(("latents_", "texts_"))}


def test_second_run_encodes_nothing_and_writes_the_same_bytes(bench: support.Bench, dataset: Path):
    before = support.tree_digest(dataset)
    again, context = bench.encode("again", CONFIG, items="plain-items")
    assert support.tree_digest(again) == before
    assert _hits(context) == {"latents_cached": 5, "texts_cached": 5, "latents_encoded": 0}
    metrics = context.collected_metrics()
    assert (metrics["video_hours"], metrics["cpu_s_per_video_minute"]) == (0, None), "found done is no work"


def test_a_new_caption_encodes_text_alone(bench: support.Bench, dataset: Path):
    rows = [dict(r, captions=["another text"], caption_digest="x") if r["media"] == "image" else r for r in bench.rows]
    changed = support.Bench(bench.root, bench.source, rows, bench.location)
    out, context = changed.encode("recaptioned", CONFIG, items="plain-items")
    assert _hits(context) == {"latents_cached": 5, "texts_cached": 4, "latents_encoded": 0}  # texts are shared
    captions = [json.loads(_member(out, r, "meta"))["captions"] for r in _rows(out) if r["media"] == "image"]
    assert captions == [["another text"]] * 2


@pytest.mark.parametrize(
    "resources",
    [Resources(workers=2), Resources(workers=3)],
    ids=["two processes", "three processes"],
)
def test_engines_and_workers_change_no_byte(bench: support.Bench, dataset: Path, resources: Resources):
    name = f"{resources.engine}{resources.workers}"
    out, context = bench.encode(name, CONFIG, resources=resources)
    assert context.collected_metrics()["latents_encoded"] == 5
    assert support.tree_digest(out) == support.tree_digest(dataset)


def test_order_of_the_clip_table_changes_no_byte(bench: support.Bench, dataset: Path):
    mixed = support.Bench(bench.root, bench.source, bench.rows[::-1], bench.location)
    out, _ = mixed.encode("reversed", CONFIG)
    assert support.tree_digest(out) == support.tree_digest(dataset)


def test_crop_and_rate_decide_what_is_encoded(bench: support.Bench):
    video = next(r for r in bench.rows if r["source_id"] == "video-2.mp4")
    rows = [dict(video, crop=[0, 0, 80, 80], first_frame=4, frames=32, clip_id="c" * 32)]
    config = CONFIG | {"buckets": {"frames": [9, 17], "sizes": [[64, 64], [64, 128]], "fps": 12}}
    out, _ = support.Bench(bench.root, bench.source, rows, bench.location).encode("cropped", config)
    (row,) = _rows(out)
    assert (row["bucket_t"], row["bucket_h"], row["bucket_w"]) == (2, 8, 8)  # 16 samples at 12 fps, square
    meta = json.loads(_member(out, row, "meta"))
    assert (meta["fps"], meta["crop"]) == (12, [0, 0, 80, 80])


def _bad_rows(bench: support.Bench) -> list[dict[str, object]]:
    video = next(r for r in bench.rows if r["source_id"] == "video-0.mp4")
    short = dict(video, clip_id="a" * 32, source_id="short", frames=6)
    mute = dict(video, clip_id="b" * 32, source_id="mute", captions=[])
    gone = dict(video, clip_id="d" * 32, source_id="gone", first_frame=400)
    dropped = dict(video, clip_id="e" * 32, source_id="dropped", kept=False)
    return [short, mute, gone, dropped]


def test_bad_clips_are_quarantined_and_the_rest_goes_on(bench: support.Bench):
    both = support.Bench(bench.root, bench.source, [*bench.rows, *_bad_rows(bench)], bench.location)
    out, _ = both.encode("bad", CONFIG, items="plain-items")
    assert {r["source_id"] for r in _rows(out)} == {r["source_id"] for r in bench.rows}
    rows = {r.source_id: (r.reason, r.step) for r in read_quarantine(out / "quarantine.parquet")}
    assert rows == {
        "short": ("too_short", "encode"), "mute": ("missing_caption", "encode"), "gone": ("too_short", "encode"),
    }  # fmt: skip


def test_too_many_bad_clips_stop_the_stage(bench: support.Bench):
    config = CONFIG | {"max_quarantine_rate": 0.1}
    both = support.Bench(bench.root, bench.source, [*bench.rows, *_bad_rows(bench)], bench.location)
    with pytest.raises(DataIntegrityError, match="quarantined"):
        both.encode("rate", config, items="plain-items")


def test_nothing_to_encode_is_an_error(bench: support.Bench):
    only_bad = support.Bench(bench.root, bench.source, _bad_rows(bench), bench.location)
    with pytest.raises(InputError, match="no clip could be encoded"):
        only_bad.encode("none", CONFIG | {"max_quarantine_rate": 1.0})


def test_changed_and_missing_media_are_quarantined(tmp_path: Path):
    bench = support.make_bench(tmp_path, videos=3, images=0)
    changed, gone = bench.location / "video-0.mp4", bench.location / "video-1.mp4"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(bytes(data))
    gone.unlink()
    out, _ = bench.encode("run", CONFIG | {"max_quarantine_rate": 1.0})
    assert {r.source_id: r.reason for r in read_quarantine(out / "quarantine.parquet")} == {
        "video-0.mp4": "source_changed", "video-1.mp4": "missing_file",
    }  # fmt: skip
    assert [r["source_id"] for r in _rows(out)] == ["video-2.mp4"]


def test_clip_of_a_source_that_is_no_input_is_refused(bench: support.Bench):
    stray = support.Bench(bench.root, bench.source, [dict(bench.rows[0], source="other")], bench.location)
    with pytest.raises(DataIntegrityError, match="no input"):
        stray.encode("stray", CONFIG)


def test_shard_limits(bench: support.Bench, dataset: Path):
    out, _ = bench.encode("small", CONFIG | {"shards": {"samples": 1}}, items="plain-items")
    assert len(list((out / "shards").glob("*.tar"))) == 5
    assert [r["sample_id"] for r in _rows(out)] == [r["sample_id"] for r in _rows(dataset)]


def test_drain_stops_and_the_next_run_goes_on(bench: support.Bench, dataset: Path):
    work = bench.root / "drained"
    request = bench.request(work, CONFIG, bench.root / "drained-items", Resources())
    context = StageContext(request)
    context.request_drain()
    with pytest.raises(Drained):
        support.run(context)
    context.progress.close()
    out, after = bench.encode("undrained", CONFIG, items="drained-items")
    assert after.collected_metrics()["latents_cached"] == 1
    assert support.tree_digest(out) == support.tree_digest(dataset)


_SLOW_CHILD = """
import sys
from pathlib import Path
import encode_support as support
from m4v.core.stage import StageContext, StageRequest
support.run(StageContext(StageRequest.model_validate_json(Path(sys.argv[1]).read_text())))
"""


def test_killed_run_is_finished_by_the_next_without_repeating(tmp_path: Path):
    """kill -9 of a real process once the first items are in the store."""
    bench = support.make_bench(tmp_path, videos=12, images=0)
    items = tmp_path / "killed-items"
    request = bench.request(tmp_path / "killed", CONFIG, items, Resources())
    (tmp_path / "request.json").write_text(request.model_dump_json())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen([sys.executable, "-c", _SLOW_CHILD, str(tmp_path / "request.json")], env=environment)
    latents = items / "latents"
    deadline = time.monotonic() + 300
    while len(_items(latents)) < 2 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    stored = len(_items(latents))
    assert stored >= 2
    resumed, context = bench.encode("resumed", CONFIG, items="killed-items")
    metrics = context.collected_metrics()
    assert metrics["latents_cached"] == stored
    assert metrics["latents_encoded"] == 12 - stored
    whole, _ = bench.encode("whole", CONFIG)
    assert support.tree_digest(resumed) == support.tree_digest(whole)


def _items(directory: Path) -> list[Path]:
    return (
        [p for p in directory.rglob("*") if p.is_file() and not p.name.endswith(".tmp")] if directory.exists() else []
    )


def test_config_refuses_sizes_the_pyramid_cannot_take():
    for buckets in ({"frames": [16]}, {"frames": [17, 9]}, {"frames": [1, 9]}, {"sizes": [[64, 100]]}, {"sizes": []}):
        with pytest.raises(ValueError):
            EncodeConfig.model_validate({"buckets": buckets})


def test_psnr():
    a = np.zeros((1, 8, 8, 3), np.uint8)
    assert psnr_db(a, a) == 99.0
    assert psnr_db(a, a + 1) == pytest.approx(48.13, abs=0.01)
