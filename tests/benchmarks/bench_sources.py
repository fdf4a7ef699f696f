"""How long, and in how much memory, a full-size OpenVid CSV is listed and probed; and folders and drawing.

    python tests/benchmarks/bench_sources.py --rows 200000 --work DIR

Every row has its (tiny) file, so stat and digest costs are real; captions have the published median length.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dataprep.sources import entries, probe
from dataprep.sources.adapter import ScanContext
from dataprep.sources.config import OpenVidConfig, SourceConfig, SyntheticConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import ListingWriter
from dataprep.sources.openvid import COLUMNS
from m4v.core.storage import Storage

CAPTION = "In the heart of a verdant forest, two adventurers follow a narrow path between mossy stones. " * 6


def make_collection(root: Path, rows: int) -> None:
    (root / "data/train").mkdir(parents=True)
    (root / "video").mkdir()
    with (root / "data/train/OpenVid-1M.csv").open("w") as table:
        table.write(",".join(COLUMNS) + "\n")
        for i in range(rows):
            name = f"-{i:09d}_{i % 17}_0to{64 + i % 200}.mp4"
            table.write(f'{name},"{CAPTION}{i}",5.{i % 1000:03d},{i % 160}.5,0.99,static,64,24,2.666667\n')
            (root / "video" / name).write_bytes(i.to_bytes(8, "little"))


def measure(work: Callable[[], object]) -> dict[str, object]:
    """Wall and CPU seconds and the growth of the peak memory of one call, in a child of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        result = work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        facts = {
            "wall_s": round(time.perf_counter() - begin, 2),
            "cpu_s": round(cpu, 2),
            "peak_growth_mib": (after.ru_maxrss - before.ru_maxrss) >> 10,
            "result": str(result),
        }
        os.write(write, json.dumps(facts).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    if not data:
        raise SystemExit("the measured call failed")
    return dict(json.loads(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--work", type=Path, default=None)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=options.work, prefix="bench-sources-"))
    os.environ["M4V_CACHE"] = str(work / "cache")
    try:
        root = work / "openvid"
        make_collection(root, options.rows)
        time.sleep(2.1)  # files changed just now are never remembered by the digest cache
        config = SourceConfig(name="openvid", adapter=OpenVidConfig())

        def scan() -> dict[str, int]:
            out = work / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            with DigestCache() as digests, ListingWriter(out) as writer:
                for entry in entries(config.adapter, Storage(str(root)), ScanContext(digests)):
                    writer.add(entry)
            return dict(writer.counts)

        def draw() -> int:
            drawn = SyntheticConfig(count=16, frames=121, size=(128, 192))
            with DigestCache() as digests:
                return sum(1 for _ in entries(drawn, Storage(str(work / "drawn")), ScanContext(digests)))

        print(f"rows {options.rows}, CSV {(root / 'data/train/OpenVid-1M.csv').stat().st_size / 1e6:.0f} MB")
        for name, call in (
            ("first scan", scan),
            ("second scan", scan),
            ("probe", lambda: probe(config, {"openvid": str(root)})[:12]),
            ("draw 16 clips of 121 frames, 128x192", draw),
        ):
            print(f"{name}: {json.dumps(measure(call))}", flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
