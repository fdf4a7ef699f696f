"""CPU cost of reading and measuring video, one thread: PyAV against decord, curation's tiers per video minute, and
what the second decoder costs.

    python tests/benchmarks/bench_decode.py [--repeats 5] [--video FILE] [--watching]

Figures are medians of CPU seconds (process time), so a busy machine does not matter. Needs the `micro` assets
(`python -m dataprep.assets fetch micro`); with no --video it reads the 720p film excerpt.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from dataprep.engine import single_threaded
from dataprep.media.decode import Backend, decode_span, open_reader
from dataprep.shots.detector import open_detector, shot_frame
from dataprep.signals.brisque import brisque
from dataprep.signals.frames import FrameSignals
from dataprep.signals.nsfw import nsfw_probability
from dataprep.signals.text import text_area
from m4v.core.asset_catalog import asset_path

BACKENDS: tuple[Backend, ...] = ("pyav", "decord")
SPARSE = 16
SPAN, BUCKET = 57, (128, 192)
ANALYSIS_SIDE, MODEL_SIDE = 320, 960
KEY_FRAME_SECONDS = 1.0  # one key frame a second: three for a shot of median length


def median_cpu(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def read(path: Path, backend: Backend, wanted: list[int], size: int | None = None) -> None:
    for _ in open_reader(path, backend).frames(wanted, size):
        pass


def compare_backends(path: Path, frames: int, repeats: int) -> None:
    sparse = np.linspace(0, frames - 1, SPARSE).astype(int).tolist()
    print(f"{'frames per CPU second':38}{'pyav':>10}{'decord':>10}{'ratio':>8}")
    for name, wanted, side in (
        ("all, full size", list(range(frames)), None),
        (f"all, {ANALYSIS_SIDE} px", list(range(frames)), ANALYSIS_SIDE),
        (f"{SPARSE} spread over the file", sparse, None),
    ):
        rates = [
            len(wanted) / median_cpu(lambda w=wanted, s=side, b=b: read(path, b, w, s), repeats)  # type: ignore[misc]
            for b in BACKENDS
        ]
        print(f"{name:38}{rates[0]:10.1f}{rates[1]:10.1f}{rates[0] / rates[1]:8.2f}")


def compare_spans(path: Path, frames: int, repeats: int) -> None:
    spans = {
        b: median_cpu(lambda b=b: decode_span(path, 0, frames, fps=24, size=BUCKET, backend=b), repeats)  # type: ignore[misc]
        for b in BACKENDS
    }
    rates = [frames / spans[b] for b in BACKENDS]
    print(
        f"{f'span of {frames} at {BUCKET[0]}x{BUCKET[1]}':38}{rates[0]:10.1f}{rates[1]:10.1f}{rates[0] / rates[1]:8.2f}"
    )


def curation_cost(path: Path, frames: int, repeats: int) -> None:
    """CPU seconds that a minute of this video costs in each tier."""
    reader = open_reader(path)
    pictures = list(reader.frames(range(frames), ANALYSIS_SIDE))
    small = np.stack([shot_frame(p) for p in pictures])
    key = next(iter(reader.frames([frames // 2], MODEL_SIDE)))
    minute = 60 * float(reader.index.fps)

    def signals() -> None:
        accumulator = FrameSignals(motion_stride=4)
        for number, picture in enumerate(pictures):
            accumulator.add(number, picture, interlaced=False)

    def per_frame(work: Callable[[], object]) -> float:
        return median_cpu(work, repeats) / frames * minute

    tiers = {
        "decode and shrink": per_frame(lambda: read(path, "pyav", list(range(frames)), ANALYSIS_SIDE)),
        "frame signals": per_frame(signals),
        "shots: histogram": per_frame(lambda: open_detector("histogram").boundaries(small, 0, frames)),
        "shots: transnetv2": per_frame(lambda: open_detector("transnetv2").boundaries(small, 0, frames)),
        "text area": median_cpu(lambda: text_area(key), repeats) * 60 / KEY_FRAME_SECONDS,
        "nsfw": median_cpu(lambda: nsfw_probability(key), repeats) * 60 / KEY_FRAME_SECONDS,
        "brisque": median_cpu(lambda: brisque(key), repeats) * 60 / KEY_FRAME_SECONDS,
    }
    print(f"\nCPU seconds for a minute of video ({reader.display.width}x{reader.display.height}, {minute / 60:g} fps)")
    for name, seconds in tiers.items():
        print(f"{name:38}{seconds:10.2f}")
    cheap = sum(tiers[n] for n in ("decode and shrink", "frame signals", "shots: histogram"))
    full = sum(tiers.values()) - tiers["shots: histogram"]
    print(
        f"{'cheap tier (histogram, no models)':38}{cheap:10.2f}\n{'full tier (transnetv2, all models)':38}{full:10.2f}"
    )


WATCHED = {"h264.mp4": "libx264", "vp8.webm": "libvpx", "vp9.webm": "libvpx-vp9", "av1.mp4": "libsvtav1"}
FAST = {"libvpx": {"cpu-used": "5"}, "libvpx-vp9": {"cpu-used": "5"}, "libsvtav1": {"preset": "10"}}


def watching_cost(path: Path, frames: int, repeats: int) -> None:
    """The same pictures in other codecs, read with every check and without those that `pyav-once` leaves out."""
    wanted = list(range(frames))
    pictures = list(open_reader(path).frames(wanted))
    print(f"\n{'CPU ms a frame, at ' + str(ANALYSIS_SIDE) + ' px':38}{'pyav-once':>10}{'pyav':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in WATCHED.items():
            copy = Path(folder) / name
            with av.open(str(copy), "w") as out:
                stream = out.add_stream(codec, rate=24, options={"b": "2500k", "g": "48", **FAST.get(codec, {})})
                stream.height, stream.width = pictures[0].shape[:2]
                for picture in pictures:
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                out.mux(stream.encode(None))
            once, twice = (
                median_cpu(lambda b=b, c=copy: read(c, b, wanted, ANALYSIS_SIDE), repeats) * 1000 / frames  # type: ignore[misc]
                for b in ("pyav-once", "pyav")
            )
            print(f"{name:38}{once:10.2f}{twice:10.2f}{twice / once:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--watching", action="store_true", help="only the cost of the second decoder")
    options = parser.parse_args()
    path = options.video or asset_path("corpus/excerpt/bigbuckbunny.mp4")
    frames = min(open_reader(path).index.frames, 150)
    with single_threaded():
        read(path, "pyav", list(range(10)))
        if options.watching:
            return watching_cost(path, min(frames, 72), options.repeats)
        compare_backends(path, frames, options.repeats)
        compare_spans(path, SPAN, options.repeats)
        curation_cost(path, frames, options.repeats)
        watching_cost(path, min(frames, 72), options.repeats)
    return None


if __name__ == "__main__":
    main()
