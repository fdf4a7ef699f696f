"""What the questions cost on a filled ledger: medians in milliseconds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fastapi.testclient import TestClient
from sqlalchemy import text

from pipelines.exposure import clip_exposure
from pipelines.impact import impact
from pipelines.ledger import Ledger
from pipelines.membership import ClipSelector
from pipelines.web.app.factory import create_app
from pipelines.workspace import Workspace
from tests.benchmarks.ledger.clips import Clips
from tests.benchmarks.ledger.history import History
from tests.benchmarks.ledger.sizes import LADDER, VERSIONS, identity

T = TypeVar("T")


def measure(url: str, home: Path, clips: Clips, history: History, repeats: int) -> dict[str, float | int]:
    """Figures of one database. The oldest clips stand in every version; `found_…` is what the first clip
    led to."""
    with Ledger.open(url) as ledger:
        chosen = random.Random(17)
        some = [clips.clip_id(chosen.randrange(clips.sizes.clips)) for _ in range(repeats)]
        oldest = [clips.clip_id(n) for n in range(min(repeats, 5))]
        checkpoints = [c for c, state in history.checkpoints if state["dataset_id"] is not None]
        asked = [checkpoints[chosen.randrange(len(checkpoints))] for _ in range(repeats)]
        longest = identity("checkpoint", VERSIONS - 1, 0, LADDER[0][0])
        figures: dict[str, float | int] = {
            "takedown_impact_ms": _median_ms(lambda clip: impact(ledger, ClipSelector(clips=(clip,))), some),
            "takedown_impact_oldest_clip_ms": _median_ms(
                lambda clip: impact(ledger, ClipSelector(clips=(clip,))), oldest
            ),
            "lineage_ms": max(_median_ms(ledger.lineage_up, asked), _median_ms(ledger.lineage_down, asked)),
            "exposure_ms": _median_ms(lambda c: clip_exposure(ledger, longest, ClipSelector(clips=(c,))), some),
            "size_bytes": size_bytes(ledger),
        }
        found = impact(ledger, ClipSelector(clips=(some[0],)))
        figures |= {f"found_{kind}": count for kind, count in found.counts().items() if count}
    figures["page_ms"] = _page_ms(Workspace(home=home, store_uri=str(home / "store"), ledger_url=url), repeats)
    return figures


def _page_ms(workspace: Workspace, repeats: int) -> float:
    """The run list as the web server renders it."""
    with TestClient(create_app(workspace, read_only=True)) as client:

        def page(path: str) -> None:
            answer = client.get(path)
            if answer.status_code != 200 or "recipe-" not in answer.text:
                raise RuntimeError(f"{path} gave {answer.status_code}")

        return _median_ms(page, ["/runs"] * repeats)


def _median_ms(work: Callable[[T], object], inputs: Sequence[T]) -> float:
    times = []
    for value in inputs:
        began = time.perf_counter()
        work(value)
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 2)


def size_bytes(ledger: Ledger) -> int:
    """Of the database, indexes included."""
    sqlite = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    with ledger._db.read() as session:
        query = sqlite if ledger._db.is_sqlite else "SELECT pg_database_size(current_database())"
        return int(session.execute(text(query)).scalar_one())
