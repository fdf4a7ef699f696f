"""What the questions cost on a filled ledger: medians in milliseconds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi.testclient import TestClient
from sqlalchemy import text

from pipelines.exposure import clip_exposure
from pipelines.impact import Impact, impact
from pipelines.ledger import Ledger
from pipelines.membership import ClipSelector
from pipelines.web.app.factory import create_app
from pipelines.workspace import Workspace
from tests.benchmarks.ledger.clips import Clips
from tests.benchmarks.ledger.history import History
from tests.benchmarks.ledger.sizes import LADDER, VERSIONS, identity

T = TypeVar("T")
Figures = dict[str, float | int]
SHOWN = 50  # rows of each list that an asker sees at first
FILTERS = (
    "recipe=recipe-3", "recipe=recipe-that-never-ran", "status=failed", "status=succeeded", "since=24h", "q=recipe-7",
    "q=words+that+no+run+has", "q=p00000", "recipe=recipe-3&status=failed&q=x",
)  # fmt: skip


class Clock:
    """Medians in milliseconds, by wall and by this process's own CPU time, which other programs do not stretch (but on
    PostgreSQL leaves out the server's part)."""

    def __init__(self) -> None:
        self.wall: Figures = {}
        self.cpu: Figures = {}

    def median(self, name: str, work: Callable[[T], object], inputs: Sequence[T]) -> None:
        walls, cpus = [], []
        for value in inputs:
            wall, cpu = time.perf_counter(), time.process_time()
            work(value)
            walls.append(1000 * (time.perf_counter() - wall))
            cpus.append(1000 * (time.process_time() - cpu))
        self.wall[name] = round(statistics.median(walls), 2)
        self.cpu[name] = round(statistics.median(cpus), 2)

    def worst(self, name: str, names: Sequence[str]) -> None:
        """The largest of some medians takes their place."""
        for figures in (self.wall, self.cpu):
            figures[name] = max(figures.pop(one) for one in names)


def measure(url: str, home: Path, clips: Clips, history: History, repeats: int) -> dict[str, Any]:
    """Figures of one database. The oldest clips stand in every version; `found` is what the oldest led to, and
    `…_first_ms` the first question to a program that has read nothing of the ledger yet."""
    chosen, clock = random.Random(17), Clock()
    some = [clips.clip_id(chosen.randrange(clips.sizes.clips)) for _ in range(repeats)]
    oldest = [clips.clip_id(n) for n in range(min(repeats, 5))]
    checkpoints = [c for c, state in history.checkpoints if state["dataset_id"] is not None]
    asked = [checkpoints[chosen.randrange(len(checkpoints))] for _ in range(repeats)]
    longest = identity("checkpoint", VERSIONS - 1, 0, LADDER[0][0])
    with Ledger.open(url) as ledger:
        clock.median("takedown_impact_first_ms", partial(_impact, ledger), oldest[-1:])
        clock.median("takedown_impact_ms", partial(_impact, ledger), some)
        clock.median("takedown_impact_oldest_ms", partial(_impact, ledger), oldest)
        clock.median("takedown_impact_whole_ms", lambda clip: _asked(ledger, clip).to_json(), oldest[:3])
        clock.median("lineage_up_ms", ledger.lineage_up, asked)
        clock.median("lineage_down_ms", ledger.lineage_down, asked)
        clock.worst("lineage_ms", ("lineage_up_ms", "lineage_down_ms"))
        clock.median("exposure_ms", lambda c: clip_exposure(ledger, longest, ClipSelector(clips=(c,))), some)
        found, size = _asked(ledger, oldest[0]).counts(), size_bytes(ledger)
    _pages(clock, Workspace(home=home, store_uri=str(home / "store"), ledger_url=url), repeats)
    return {**clock.wall, "cpu_ms": clock.cpu, "found": found, "size_bytes": size}


def _asked(ledger: Ledger, clip: str) -> Impact:
    return impact(ledger, ClipSelector(clips=(clip,)))


def _impact(ledger: Ledger, clip: str) -> None:
    """Everything counted, and the first rows of each list: what a page or a terminal shows."""
    found = _asked(ledger, clip)
    found.counts(), found.checkpoints[:SHOWN], found.products[:SHOWN]


def _pages(clock: Clock, workspace: Workspace, repeats: int) -> None:
    """The run list as the web server renders it, and by the filter that takes it longest."""
    with TestClient(create_app(workspace, read_only=True)) as client:

        def page(path: str) -> None:
            answer = client.get(path)
            if answer.status_code != 200 or "recipe-" not in answer.text:
                raise RuntimeError(f"{path} gave {answer.status_code}")

        clock.median("page_ms", page, ["/runs"] * repeats)
        for number, wanted in enumerate(FILTERS):
            clock.median(f"filter {number}", page, [f"/runs?{wanted}"] * max(1, repeats // 3))
        clock.worst("page_filtered_ms", [f"filter {number}" for number in range(len(FILTERS))])


def size_bytes(ledger: Ledger) -> int:
    """Of the database, indexes included."""
    sqlite = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    with ledger._db.read() as session:
        query = sqlite if ledger._db.is_sqlite else "SELECT pg_database_size(current_database())"
        return int(session.execute(text(query)).scalar_one())
