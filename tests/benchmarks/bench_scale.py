"""A generated manifest of ten million rows through planning, dedup, index and data order, in bounded memory.

    python tests/benchmarks/bench_scale.py --rows 10000000 --work DIR

Every step is a process of its own; printed are its seconds, its peak memory and what it found. A step beyond
4 GiB, or one that finds other copies or another order than was generated, fails the run. Ten million rows take about
20 GB below DIR and the folder for temporary files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scale_stages
import scale_versions
from scale_manifest import copies, index_tables, write_clips, write_webvid

from dataprep.curate_config import DedupConfig, FilterConfig
from dataprep.curation.candidates import HASHES, read_candidates
from dataprep.curation.filters import RULES, decide
from dataprep.curation.table import CLIPS
from dataprep.sources import entries
from dataprep.sources.adapter import ScanContext
from dataprep.sources.config import WebVidConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import ListingWriter
from m4v.core.shard_index import INDEX, IndexWriter, read_index
from m4v.core.storage import Storage
from training.config import OrderConfig
from training.order import DataOrder
from training.samples import COLUMNS, Samples

LIMIT_GIB = 4.0
_ASKED_FOR = ("curate", "encode")  # a row takes milliseconds, and a preview or 5 KB of shards on disk
_STEPS_READ = 2000  # steps of the data order that are drawn
_LOOKED_UP = 500  # samples asked which steps saw them
_NO_FILTERS = FilterConfig(**{rule.threshold: None for rule in RULES})  # generated scores mean nothing


def plan(work: Path, rows: int) -> dict[str, object]:
    """Lists and validates every row of WebVid's table; the files are missing, so each is one to be fetched."""
    out = work / "listing"
    out.mkdir()
    with DigestCache() as digests, ListingWriter(out) as writer:
        for entry in entries(WebVidConfig(), Storage(str(work / "webvid")), ScanContext(digests)):
            writer.add(entry)
    _expect(writer.counts["wanted"], rows, "rows to be fetched")
    return {"wanted": writer.counts["wanted"]}


def dedup(work: Path, rows: int) -> dict[str, object]:
    """The whole decision over the clip table: every rule's column is read, copies are searched and resolved."""
    candidates = read_candidates(work / "clips" / CLIPS, work / "clips" / HASHES)
    decision = decide(candidates, _NO_FILTERS, DedupConfig())
    found = Counter(rule for rule in decision.drop_rules if rule is not None)
    near, equal = copies(rows)
    _expect(found["duplicate_exact"], equal, "equal copies")
    if not 0.98 * near <= found["duplicate_near"] <= near:
        raise SystemExit(f"{found['duplicate_near']} near copies found, {near} generated")
    return {"exact": found["duplicate_exact"], "near": found["duplicate_near"], "near_generated": near}


def build_index(work: Path, rows: int) -> dict[str, object]:
    """Index rows in the order of the clip table to a sorted `index.parquet`."""
    with IndexWriter(work / INDEX) as writer:
        for table in index_tables(work / "clips" / CLIPS):
            writer.add_table(table)
    return {"size_mb": round((work / INDEX).stat().st_size / 1e6)}


def read_order(work: Path, rows: int) -> dict[str, object]:
    """Reads the index, plans a stage over all samples, draws steps, and asks which steps saw a sample."""
    samples = Samples.of_index(read_index(work / INDEX, COLUMNS))
    _expect(len(samples.ids), rows, "samples")
    planned = time.perf_counter()
    order = DataOrder(samples, OrderConfig(frames=121, packs=8, min_frames=9), 7, "121f")
    cursor = 40 * rows // order.step_size(0).samples  # about forty epochs
    drawn = time.perf_counter()
    steps = np.linspace(0, cursor - 1, _STEPS_READ, dtype=np.int64).tolist()
    packs = [(step, p) for step in steps for p in order.packs(step)]
    inverse = time.perf_counter()
    for step, pack in packs[:: max(1, len(packs) // _LOOKED_UP)]:
        sample = pack.draws[0].sample_id
        if (step, pack.place, 0) not in order.places_of(sample, cursor):
            raise SystemExit(f"step {step} drew {sample}, the inverse does not know")
    ended = time.perf_counter()
    return {
        "streams": len(order.streams), "cursor": cursor, "plan_s": round(drawn - planned, 2),
        "ms_per_step": round((inverse - drawn) / len(steps) * 1e3, 2),
        "ms_per_sample_inverse": round((ended - inverse) / min(_LOOKED_UP, len(packs)) * 1e3, 2),
    }  # fmt: skip


def count_uses(work: Path, rows: int) -> dict[str, object]:
    """How often each sample was used after one and a half epochs."""
    order = DataOrder(
        Samples.of_index(read_index(work / INDEX, COLUMNS)), OrderConfig(frames=121, packs=8, min_frames=9), 7, "121f"
    )
    cursor = 3 * rows // (2 * order.step_size(0).samples)
    counts = order.counts(cursor)
    return {"samples": len(counts), "cursor": cursor}


STEPS: dict[str, Callable[[Path, int], dict[str, object]]] = {
    "plan": plan, "dedup": dedup, "index": build_index, "order": read_order, "counts": count_uses,
    "merge": scale_versions.merge, "subset": scale_versions.subset, "remove": scale_versions.remove,
    "redact": scale_versions.redacted, "curate": scale_stages.curated, "encode": scale_stages.encoded,
}  # fmt: skip


def _expect(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise SystemExit(f"{found} {what} instead of {expected}")


def run_step(name: str, work: Path, rows: int, limit_gib: float) -> None:
    begin, before = time.perf_counter(), os.times()
    result = STEPS[name](work, rows)
    after = os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {
        "step": name, "rows": rows, "wall_s": round(time.perf_counter() - begin, 1),
        "cpu_s": round(after.user + after.system - before.user - before.system, 1), "peak_gib": round(peak, 2),
        **result,
    }  # fmt: skip
    print(json.dumps(facts), flush=True)
    if peak > limit_gib:
        raise SystemExit(f"step {name} took {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--limit-gib", type=float, default=LIMIT_GIB)
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=[s for s in STEPS if s not in _ASKED_FOR])
    parser.add_argument("--step", choices=tuple(STEPS), help="only this, on what lies in --work already")
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.work, options.rows, options.limit_gib)
        return
    work = Path(tempfile.mkdtemp(dir=options.work, prefix="bench-scale-"))
    environment = {**os.environ, "M4V_CACHE": str(work / "cache"), "TMPDIR": str(work)}
    try:
        begin = time.perf_counter()
        write_webvid(work / "webvid", options.rows)
        write_clips(work / "clips", options.rows)
        print(json.dumps({"step": "generate", "wall_s": round(time.perf_counter() - begin, 1)}), flush=True)
        for name in options.steps:
            command = [
                sys.executable, __file__, "--rows", str(options.rows), "--work", str(work), "--step", name,
                "--limit-gib", str(options.limit_gib),
            ]  # fmt: skip
            subprocess.run(command, check=True, env=environment)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
