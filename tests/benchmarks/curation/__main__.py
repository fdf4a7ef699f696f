"""Curation against video2dataset and a plain PyAV + webdataset script, on the same files in one run.

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 imageio-ffmpeg video2dataset 'pyarrow<19' 'pandas<2.3' 'webdataset<0.3'
    python -m tests.benchmarks.curation --peer PEER/bin/python [--repeats 3] [--json]

Every side finds the cuts of every file, resizes each clip to 128x192 (cover and crop), takes at most its first
241 frames and writes shards of 16 samples. What differs is said in the table: we measure more and write latents with text
features, the others write H.264. CPU seconds of all processes, so a busy machine matters little; then each side is
killed (SIGKILL, whole process group) half-way and run again: samples lost, samples twice, CPU spent again.
"""  # noqa: E501

from __future__ import annotations

import argparse
import functools
import http.server
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.curation.measure import Cost, Killed, run, run_killed
from tests.benchmarks.curation.sides import SIDES, Side, collect_videos, video_minutes


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-curation-") as folder:
        root = Path(folder)
        videos = collect_videos(root / "videos", drawn=options.drawn)
        minutes = video_minutes(videos)
        with serving(videos) as address:
            sides = [side(address, videos, options.peer) for side in SIDES if side.needs_peer <= bool(options.peer)]
            results = {side.name: measure(side, root / side.name, options.repeats) for side in sides}
    report = {name: facts(result, minutes) for name, result in results.items()}
    if options.json:
        print(json.dumps({"video_minutes": round(minutes, 3), "files": options.drawn + len(results), "sides": report}))
        return
    show(report, minutes, {side.name: side.does for side in sides})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", help="Python of an environment with video2dataset; without it that side is left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--drawn", type=int, default=24, help="clips of moving shapes beside the packaged footage")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The files over HTTP on loopback: video2dataset only downloads."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return None


class Result:
    """What one side cost in each repeat, the samples it made, and what a kill did to it."""

    def __init__(self, costs: list[Cost], samples: list[str], killed: Killed) -> None:
        self.costs, self.samples, self.killed = costs, samples, killed

    def median(self, value: Callable[[Cost], float]) -> float:
        return statistics.median(value(cost) for cost in self.costs)


def measure(side: Side, root: Path, repeats: int) -> Result:
    costs = []
    for number in range(repeats):
        out = root / str(number)
        costs.append(run(side.command(out), side.environment(out), out))
    samples = side.samples(root / "0")
    if not samples:
        sys.exit(f"{side.name} made no sample; see {root}/0.log")
    wall_s = statistics.median(cost.wall_s for cost in costs)
    out = root / "killed"
    killed = run_killed(side.command(out), side.environment(out), out, after_s=wall_s / 2)
    after = side.samples(out)
    lost, twice = len(set(samples) - set(after)), len(after) - len(set(after))
    return Result(costs, samples, killed.with_samples(lost, twice))


def facts(result: Result, minutes: float) -> dict[str, object]:
    cpu_s = result.median(lambda c: c.cpu_s)
    return {
        "samples": len(result.samples),
        "cpu_s": round(cpu_s, 2),
        "clips_per_cpu_s": round(len(result.samples) / cpu_s, 3),
        "cpu_s_per_video_minute": round(cpu_s / minutes, 2),
        "wall_s": round(result.median(lambda c: c.wall_s), 2),
        "peak_pss_mb": round(result.median(lambda c: c.peak_bytes) / 1e6),
        "killed_cpu_again_s": round(result.killed.cpu_s - cpu_s, 2),
        "killed_lost": result.killed.lost,
        "killed_twice": result.killed.twice,
    }


def show(report: dict[str, dict[str, object]], minutes: float, does: dict[str, str]) -> None:
    columns = list(next(iter(report.values())))
    print(f"{minutes:.2f} minutes of video")
    print(f"{'side':26}" + "".join(f"{c:>24}" for c in columns))
    for name, row in report.items():
        print(f"{name:26}" + "".join(f"{row[c]!s:>24}" for c in columns))
    for name, text in does.items():
        print(f"{name}: {text}")


if __name__ == "__main__":
    main()
