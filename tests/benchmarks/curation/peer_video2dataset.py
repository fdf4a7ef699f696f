"""Runs video2dataset 1.3.0 in its own environment: `python peer_video2dataset.py ADDRESS VIDEOS OUT`.

Frame rates stay as they are: its frame-rate step fails on every sample with current Pythons.
"""

import os
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg
from video2dataset import video2dataset
from video2dataset.subsamplers import ResolutionSubsampler

# Version 1.3.0 reads this attribute of its resizer, which does not have it.
ResolutionSubsampler.encode_formats = {"video": "mp4"}
HEIGHT, WIDTH, SECONDS, SHARD = 128, 192, 241 / 24, 16


def main(address: str, videos: str, out: str) -> None:
    with tempfile.TemporaryDirectory() as programs:
        # It calls `ffmpeg` by name; a package carries one.
        (Path(programs) / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        names = sorted(path.name for path in Path(videos).glob("*.mp4"))
        table = Path(out).with_suffix(".csv")
        rows = [f"{address}/{name},a clip called {name}" for name in names]
        table.write_text("\n".join(["url,caption", *rows]) + "\n")
        video2dataset(
            url_list=str(table), output_folder=out, output_format="webdataset", input_format="csv",
            url_col="url", caption_col="caption", encode_formats={"video": "mp4"}, stage="download", config=settings(),
        )  # fmt: skip


def settings() -> dict[str, object]:
    return {
        "subsampling": {
            "CutDetectionSubsampler": {
                "cuts_are_clips": True,
                "args": {"cut_detection_mode": "all", "framerates": None, "threshold": 27, "min_scene_len": 17},
            },
            "ClippingSubsampler": {
                "args": {
                    "min_length": 17 / 24, "max_length": SECONDS, "max_length_strategy": "first", "precision": "exact",
                }
            },
            "ResolutionSubsampler": {"args": {"resize_mode": ["scale", "crop"], "height": HEIGHT, "width": WIDTH}},
        },
        "reading": {"yt_args": {}, "timeout": 60, "sampler": None},
        "storage": {"number_sample_per_shard": SHARD, "oom_shard_count": 5, "captions_are_subtitles": False},
        "distribution": {
            "processes_count": 2, "thread_count": 2, "subjob_size": 1000, "distributor": "multiprocessing",
        },
    }  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
