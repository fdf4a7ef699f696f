"""The sides of the comparison: command, environment, and the samples that a finished run has left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path

import av
import pyarrow.parquet as pq
import yaml

from m4v.core.asset_catalog import asset_path

HEIGHT, WIDTH, FRAMES, SHARD = 128, 192, 241, 16
HERE = Path(__file__).parent
_PACKAGED = (
    "trailer",
    "corpus/excerpt/bigbuckbunny.mp4",
    *(f"corpus/footage/{n}.mp4" for n in ("box", "cap12_edit", "cap13_edit2", "cup", "jwpIntro", "ocean", "testMovie")),
    *(f"corpus/street/{n}.mp4" for n in ("a", "bikes", "carphone_pristine", "world")),
)


def collect_videos(folder: Path, drawn: int) -> Path:
    """A folder of packaged footage and drawn clips, each with a caption in `captions.csv`."""
    folder.mkdir(parents=True)
    for name in _PACKAGED:
        shutil.copy(asset_path(name), folder)
    draw = [sys.executable, "-m", "dataprep.sources.synthetic", "--out", str(folder / "drawn"), "--count", str(drawn)]
    subprocess.run([*draw, "--frames", "57", "--size", "256", "384"], check=True, stdout=subprocess.DEVNULL)
    for number, path in enumerate(sorted((folder / "drawn").rglob("*.mp4"))):
        path.rename(folder / f"drawn{number:03d}.mp4")
    shutil.rmtree(folder / "drawn")
    lines = [f"{path.name},a clip called {path.stem}" for path in sorted(folder.glob("*.mp4"))]
    (folder / "captions.csv").write_text("\n".join(["path,caption", *lines]) + "\n")
    return folder


def video_minutes(folder: Path) -> float:
    seconds = 0.0
    for path in folder.glob("*.mp4"):
        with av.open(str(path)) as container:
            seconds += (container.duration or 0) / av.time_base
    return seconds / 60


class Side(ABC):
    """One program under comparison. `does` says what it does to each clip."""

    name: str
    does: str
    needs_peer = False

    def __init__(self, address: str, videos: Path, peer: str | None) -> None:
        self.address, self.videos, self.peer = address, videos, peer

    @abstractmethod
    def command(self, out: Path) -> list[str]: ...

    def environment(self, out: Path) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1"}

    @abstractmethod
    def samples(self, out: Path) -> list[str]:
        """A key of every sample in the finished shards."""


class Ours(Side):
    name = "m4v"
    does = (
        "source, curate and encode stages with ledger: cuts, motion, blackness, freeze, sharpness, flash, letterbox, "
        "perceptual hashes, dedup, latents, text features, checked shards"
    )
    signals = "{text: false, nsfw: false, quality: false, key_frames: 1}"
    detector = "histogram"

    def command(self, out: Path) -> list[str]:
        recipe = out.with_suffix(".yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(self.recipe())
        program = [sys.executable, "-m", "pipelines.cli.main", "--home", str(out)]
        return [*program, "run", str(recipe), "--no-prefect", "--until", "encode"]

    def recipe(self) -> str:
        shipped = yaml.safe_load((HERE.parents[2] / "pipelines" / "recipes" / "micro.yaml").read_text())
        open_rules = ("max_text", "max_nsfw", "max_brisque", "max_frozen", "min_motion", "max_jitter",
                      "min_sharpness", "max_blockiness", "max_overexposed", "max_black", "max_flash",
                      "max_letterbox")  # fmt: skip
        shipped["sources"] = [
            {"name": "clips", "location": str(self.videos), "adapter": {"kind": "folder", "licence": "mixed"}}
        ]
        shipped["curate"] |= {
            "shots": {"detector": self.detector},
            "signals": yaml.safe_load(self.signals),
            "filters": {"min_frames": 17, "min_side": 32, **dict.fromkeys(open_rules)},
            "dedup": {"exact": True, "perceptual": True},
        }
        shipped["encode"]["buckets"] = {"frames": [17, 57, 121, FRAMES], "sizes": [[HEIGHT, WIDTH]], "fps": 24}
        shipped["encode"]["shards"] = {"samples": SHARD}
        return str(yaml.safe_dump(shipped))

    def samples(self, out: Path) -> list[str]:
        indexes = list((out / "store" / "artifacts" / "dataset").glob("*/*/index.parquet"))
        return [key for index in indexes for key in pq.read_table(index)["sample_id"].to_pylist()]


class OursWhole(Ours):
    name = "m4v, all signals"
    does = "the same with TransNet V2 for the cuts, text, NSFW and quality models on three key frames"
    signals = "{text: true, nsfw: true, quality: true, key_frames: 3}"
    detector = "transnetv2"


class Video2Dataset(Side):
    name = "video2dataset"
    does = "PySceneDetect cuts, clipping at exact places, scale and crop by ffmpeg (H.264), shards"
    needs_peer = True

    def command(self, out: Path) -> list[str]:
        assert self.peer is not None
        return [self.peer, str(HERE / "peer_video2dataset.py"), self.address, str(self.videos), str(out)]

    def samples(self, out: Path) -> list[str]:
        return _tar_keys(out)


class Plain(Side):
    name = "plain script"
    does = "one loop of PyAV, a histogram difference for the cuts, H.264 by PyAV, webdataset.ShardWriter"

    def command(self, out: Path) -> list[str]:
        return [sys.executable, str(HERE / "plain_script.py"), str(self.videos), str(out)]

    def samples(self, out: Path) -> list[str]:
        return _tar_keys(out)


def _tar_keys(out: Path) -> list[str]:
    keys = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as shard:
            keys += [name.rsplit(".", 1)[0] for name in shard.getnames() if name.endswith(".mp4")]
    return keys


SIDES: tuple[type[Side], ...] = (Ours, OursWhole, Video2Dataset, Plain)
