"""Lineage of 5,000 artifacts as one recursive query, against a walk that asks for each artifact's consumers.

    python tests/benchmarks/bench_ledger.py --repeats 5

Prints medians in milliseconds and their ratio. SQLite on local disk.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines" / "ledger"))

from test_ledger_lineage import write_graph

from pipelines.ledger import Ledger

ARTIFACTS = 5000


def build(path: Path) -> Ledger:
    ledger = Ledger.open(str(path))
    runs: list[tuple[list[int], list[int]]] = [([], [0])]
    while len(runs) <= ARTIFACTS:
        runs.append(([(len(runs) * 7919) % len(runs)], [len(runs)]))
    write_graph(ledger, "x", runs)
    return ledger


def walk(ledger: Ledger, root: str) -> set[str]:
    """The other side: one query an artifact."""
    seen, waiting = {root}, [root]
    while waiting:
        for run in ledger.consumers(waiting.pop()):
            fresh = {port.artifact_id for port in run.outputs} - seen
            seen |= fresh
            waiting.extend(fresh)
    return seen


def median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as directory, build(Path(directory) / "ledger.db") as ledger:
        assert set(ledger.lineage_down("x-0").artifacts) == walk(ledger, "x-0")
        query = median_ms(lambda: ledger.lineage_down("x-0"), repeats)
        walked = median_ms(lambda: walk(ledger, "x-0"), max(1, repeats // 3))
    print(f"recursive query {query:.1f} ms, walk {walked:.1f} ms, ratio {walked / query:.1f}")


if __name__ == "__main__":
    main()
