"""How long, and in how much memory, full-size tables are listed and probed; and drawing.

    python tests/benchmarks/bench_sources.py --rows 200000 --work DIR [--kind openvid|webvid|opensora_plan]

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
from dataprep.sources.config import (
    AdapterConfig,
    OpenSoraPlanConfig,
    OpenVidConfig,
    SourceConfig,
    SyntheticConfig,
    WebVidConfig,
)
from dataprep.sources.config_tables import AnnotatedSet
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import ListingWriter
from dataprep.sources.openvid import COLUMNS
from m4v.core.storage import Storage

CAPTION = "In the heart of a verdant forest, two adventurers follow a narrow path between mossy stones. " * 6


def make_webvid(root: Path, rows: int) -> None:
    root.mkdir()
    with (root / "results_10M_train.csv").open("w") as table:
        table.write("videoid,name,page_idx,page_dir,duration,contentUrl\n")
        for i in range(rows):
            page = f"{i // 50 * 50 + 1:06d}_{i // 50 * 50 + 50:06d}"
            url = f"https://ak.picdn.net/shutterstock/videos/{i}/preview/stock-footage-{i}.mp4"
            table.write(f'{i},"{CAPTION[:90]}, {i}",{i},{page},PT00H00M17S,{url}\n')
            folder = root / "videos" / page
            if i % 50 == 0:
                folder.mkdir(parents=True)
            (folder / f"{i}.mp4").write_bytes(i.to_bytes(8, "little"))


def make_opensora(root: Path, rows: int) -> None:
    """Two spans a file, as v1.1 has several, with the fields of v1.3."""
    root.mkdir()
    with (root / "anno.json").open("w") as table:
        table.write("[")
        for i in range(rows):
            path = f"panda70m_part_{i // 2000}/{i // 2}.mp4"
            row = {
                "path": path, "cap": [f"{CAPTION}{i}"], "resolution": {"height": 720, "width": 1280}, "fps": 29.97,
                "duration": 11.44, "num_frames": 289, "aesthetic": 5.1, "cut": [i % 2 * 289, 289 + i % 2 * 289],
                "crop": [0, 1280, 20, 700], "tech": 0.4, "motion": 0.02,
            }  # fmt: skip
            table.write((", " if i else "") + json.dumps(row))
            if i % 2000 == 0:
                (root / f"panda70m_part_{i // 2000}").mkdir()
            if i % 2 == 0:
                (root / path).write_bytes(i.to_bytes(8, "little"))
        table.write("]")


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


KINDS: dict[str, tuple[Callable[[Path, int], None], AdapterConfig]] = {
    "openvid": (make_collection, OpenVidConfig()),
    "webvid": (make_webvid, WebVidConfig()),
    "opensora_plan": (make_opensora, OpenSoraPlanConfig(sets=(AnnotatedSet(annotation="anno.json"),))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--kind", choices=sorted(KINDS), default="openvid")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=options.work, prefix="bench-sources-"))
    os.environ["M4V_CACHE"] = str(work / "cache")
    try:
        root = work / options.kind
        make, adapter = KINDS[options.kind]
        make(root, options.rows)
        time.sleep(2.1)  # files changed just now are never remembered by the digest cache
        config = SourceConfig(name="bench", adapter=adapter)

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

        tables = [p for p in root.rglob("*") if p.suffix in (".csv", ".json")]
        print(f"{options.kind}: {options.rows} rows, {sum(p.stat().st_size for p in tables) / 1e6:.0f} MB of tables")
        for name, call in (
            ("first scan", scan),
            ("second scan", scan),
            ("probe", lambda: probe(config, {"bench": str(root)})[:12]),
            ("draw 16 clips of 121 frames, 128x192", draw),
        ):
            print(f"{name}: {json.dumps(measure(call))}", flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
