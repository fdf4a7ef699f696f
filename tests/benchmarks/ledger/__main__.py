"""Questions to a generated ledger: takedown impact, lineage, exposure, the page of runs, on SQLite and PostgreSQL.

    python -m tests.benchmarks.ledger --json
    python -m tests.benchmarks.ledger --scale 0.01 --database sqlite

5 M clips in 50 dataset versions, 10 k checkpoints, 100 k runs; `--scale` makes less of each. Times are medians over
`--repeats` in milliseconds, from Python call to answer, with warm database caches (`cpu_ms`: this process's own CPU
time, for a busy machine). An impact is asked for with its totals and the first rows of its lists. The goals are 100 ms
for the impact of one clip and for its exposure in a checkpoint of 100,000 steps, 200 ms for lineage and 300 ms for the
page.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.cli.main import COLLECT_AFTER
from pipelines.ledger import Ledger
from tests.benchmarks.ledger.load import fill
from tests.benchmarks.ledger.measure import measure
from tests.benchmarks.ledger.sizes import VERSIONS, Sizes

DATABASES = ("sqlite", "postgres")


@contextmanager
def database(name: str, folder: Path) -> Iterator[str]:
    """URL of a fresh database of this kind below `folder`."""
    if name == "sqlite":
        yield str(folder / "ledger.db")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no XDG_RUNTIME_DIR: it locks in the temporary directory
        import pgserver
    server = pgserver.get_server(folder / "postgres")
    try:
        _without_fsync(server.get_uri())
        yield server.get_uri()
    finally:
        os.kill(server.get_pid(), signal.SIGINT)  # stop, whoever is connected
        server.cleanup()


def _without_fsync(url: str) -> None:
    """Filling is not what is measured, and nothing of it is kept."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")


def _settle(url: str) -> None:
    """What the server's own vacuum and checkpoints have done to a ledger that was not filled a second ago."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def run(name: str, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Fill a database and measure it."""
    with tempfile.TemporaryDirectory(prefix="ledger-benchmark-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)  # the server is a user of its own when this runs as root
        with database(name, folder) as url:
            began = time.perf_counter()
            with Ledger.open(url) as ledger:
                clips, history = fill(ledger, sizes)
            if name == "postgres":
                _settle(url)
            filled_s = round(time.perf_counter() - began, 1)
            print(f"{name}: filled in {filled_s} s", file=sys.stderr)
            return {**measure(url, folder, clips, history, repeats), "fill_s": filled_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--database", choices=DATABASES, help="only this one")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    gc.set_threshold(COLLECT_AFTER)  # as the command line does
    sizes = Sizes.scaled(options.scale)
    shape = {"clips": sizes.clips, "versions": VERSIONS, "checkpoints": sizes.checkpoints, "runs": sizes.runs}
    names = [options.database] if options.database else DATABASES
    figures: dict[str, Any] = {**shape, **{name: run(name, sizes, options.repeats) for name in names}}
    if options.json:
        print(json.dumps(figures, sort_keys=True))
        return
    print(", ".join(f"{count:,} {what}" for what, count in shape.items()))
    for name in names:
        told = figures[name]
        for what, figure in sorted(told.items()):
            if not isinstance(figure, dict):
                cpu = f"{told['cpu_ms'][what]:>14,} ms of CPU" if what in told["cpu_ms"] else ""
                print(f"{name:10}{what:30}{figure:>16,}{cpu}")


if __name__ == "__main__":
    main()
