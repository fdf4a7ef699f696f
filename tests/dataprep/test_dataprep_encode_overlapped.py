"""Encoding with one process at the device gives the items of encoding clip by clip, in order, and stops cleanly."""

from dataclasses import replace
from pathlib import Path

import encode_support as support
import pytest

from dataprep.encode.clips import kept_clips
from dataprep.encode.device_clock import DeviceClock
from dataprep.encode.jobs import ClipMedia, Encoded, EncodeJob, encode_clip
from dataprep.encode.overlapped import encode_overlapped, overlaps
from dataprep.encode_config import BucketConfig
from dataprep.engine import InlineEngine, open_engine
from dataprep.media.location import MediaFile
from dataprep.quarantine import ItemFailure, Reason
from m4v.codec.config import CausalVaeConfig
from m4v.core.artifacts import ArtifactKind, ArtifactRef, build_manifest, read_manifest, write_manifest
from m4v.core.items import ItemStore
from m4v.core.stage import Resources
from m4v.core.storage import Storage
from m4v.text.config import MiniLmConfig
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae

NARROW = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
TINY = VaeConfig.model_validate({f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in NARROW.items()})
BUCKETS = BucketConfig(frames=(9, 17), sizes=((64, 128),))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[EncodeJob]:
    """Three videos and an image; the second video's file is gone."""
    bench = support.make_bench(tmp_path_factory.mktemp("overlapped"), videos=3, images=1)
    folder = bench.root / "weights"
    save_vae(folder, build_vae(TINY, seed=5))
    write_manifest(folder, build_manifest(folder, ArtifactKind.WEIGHTS, {}))
    weights = ArtifactRef(
        kind=ArtifactKind.WEIGHTS, uri=str(folder), artifact_id=read_manifest(Storage(str(folder))).artifact_id,
        cache=str(bench.root / "cache"),
    )  # fmt: skip
    found = []
    for clip in kept_clips(bench.clips().path("clips.parquet")):
        file = MediaFile(
            str(bench.location), clip.path, clip.size_bytes, clip.source_digest, True, str(bench.root / "media-cache")
        )
        fps, buckets = clip.sampling_fps(BUCKETS), clip.buckets(BUCKETS)
        media = ClipMedia(file, clip.first_frame, clip.first_frame + clip.frames, clip.crop, fps, tuple(buckets))
        found.append(
            EncodeJob(
                media, CausalVaeConfig(weights="vae", logvar=True), "", clip.latent_key(buckets, fps), clip.captions,
                MiniLmConfig(slots=8), "", clip.text_key(), "", (("vae", weights),),
            )
        )  # fmt: skip
    (bench.location / "video-1.mp4").unlink()
    return found


def into(jobs: list[EncodeJob], root: Path) -> list[EncodeJob]:
    stores = {f"{name}_uri": str(root / name) for name in ("latents", "texts", "times")}
    return [replace(job, **stores) for job in jobs]


def items(jobs: list[EncodeJob]) -> list[tuple[bytes | None, ...]]:
    """Latent, text and frame times of each."""
    return [
        tuple(
            ItemStore(Storage(uri)).get(key)
            for uri, key in ((j.latents_uri, j.latent_key), (j.texts_uri, j.text_key), (j.times_uri, j.latent_key))
        )
        for j in jobs
    ]


def test_same_items_in_the_same_order(jobs: list[EncodeJob], tmp_path: Path) -> None:
    alone, together = into(jobs, tmp_path / "alone"), into(jobs, tmp_path / "together")
    expected = list(InlineEngine().map(encode_clip, alone))
    clock = DeviceClock()
    with open_engine(Resources(workers=2)) as engine:
        found = list(encode_overlapped(engine, together, 2, 60, clock))
    assert found == expected
    assert [getattr(r, "shape", None) for r in found] == [(3, 8, 16), None, (3, 8, 16), (1, 8, 16)]
    assert isinstance(found[1], ItemFailure)
    assert found[1].reason == Reason.MISSING_FILE
    assert items(together) == items(alone)
    assert clock.frames == 17 + 17 + 1
    figures = clock.figures()
    assert figures["device_busy_s"]
    assert 0 <= (figures["device_waited_share"] or 0) < 1
    again = list(encode_overlapped(InlineEngine(), [together[0], together[2]], 1, None, DeviceClock()))
    assert again == [Encoded((3, 8, 16), latent_hit=True, text_hit=True)] * 2


def test_stopped_between_clips_nothing_is_half_written(jobs: list[EncodeJob], tmp_path: Path) -> None:
    stopped = into([jobs[0], jobs[2], jobs[3]], tmp_path)
    results = encode_overlapped(InlineEngine(), stopped, 1, None, DeviceClock())
    assert isinstance(next(results), Encoded)
    results.close()  # type: ignore[attr-defined]
    clock = DeviceClock()
    done = list(encode_overlapped(InlineEngine(), stopped, 1, None, clock))
    assert isinstance(done[0], Encoded)
    assert done[0].latent_hit
    assert all(all(parts) for parts in items(stopped))


def test_a_fault_in_a_worker_reaches_the_caller(jobs: list[EncodeJob], tmp_path: Path) -> None:
    broken = replace(into(jobs[:1], tmp_path)[0], latents_uri="nowhere://x")
    with pytest.raises(Exception, match="nowhere"):
        list(encode_overlapped(InlineEngine(), [broken], 1, None, DeviceClock()))


@pytest.mark.parametrize(("device", "engine", "expected"), [
    ("cuda", "process", True), ("cuda:1", "process", True), ("cuda", "ray", False), ("cpu", "process", False),
])  # fmt: skip
def test_only_a_gpu_of_this_machine_is_worked_like_that(device: str, engine: str, expected: bool) -> None:
    assert overlaps(device, engine) is expected
