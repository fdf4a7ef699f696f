"""The ledger benchmark at its smallest: it prints what it promises, and its ledger answers like a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from sqlalchemy.event import listen

from pipelines.exposure import clip_exposure
from pipelines.impact import impact
from pipelines.ledger import Ledger
from pipelines.membership import ClipSelector
from tests.benchmarks.ledger.load import fill
from tests.benchmarks.ledger.sizes import VERSIONS, Sizes, identity

REPOSITORY = Path(__file__).parents[3]
SCALE = 0.0005
PROMISED = {
    "takedown_impact_ms", "takedown_impact_oldest_ms", "lineage_ms", "page_ms", "page_filtered_ms", "exposure_ms",
    "size_bytes",
}  # fmt: skip


def test_it_prints_one_line_of_json() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.ledger", "--json", "--scale", str(SCALE), "--repeats", "1"]
    done = subprocess.run(
        [*command, "--database", "sqlite"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    assert {"clips", "versions", "checkpoints", "runs"} <= figures.keys()
    assert figures["sqlite"].keys() >= PROMISED
    assert all(figures["sqlite"][name] > 0 for name in PROMISED)


def test_the_generated_ledger_answers_by_its_own_rules(ledger: Ledger) -> None:
    sizes = Sizes.scaled(SCALE)
    clips, history = fill(ledger, sizes)
    assert len(history.rows["stage_run"]) <= sizes.runs < len(history.rows["stage_run"]) + 3
    number = sizes.clips // 2
    first = number // sizes.batch
    clip = clips.clip_id(number)
    asked: list[str] = []
    listen(ledger._db.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    found = impact(ledger, ClipSelector(clips=(clip,)))
    assert len(asked) <= 18, "an impact is a handful of statements, however large the ledger"
    assert sorted(found.holding("dataset")) == sorted(identity("dataset", v) for v in range(first, VERSIONS))
    assert found.holding("clips") == [identity("clips", first)]
    assert len(found.checkpoints) == (VERSIONS - first) * sizes.checkpoints // VERSIONS
    # Ranks in the newest version, which has every sample.
    dataset, (sample,) = identity("dataset", VERSIONS - 1), ledger.samples_of(identity("dataset", VERSIONS - 1), [clip])
    mine = clips.sample[clips.group == clips.group[number]]
    words = [(int(high), int(low)) for high, low in mine]
    own = (int(clips.sample[number, 0]), int(clips.sample[number, 1]))
    assert ledger.rank_in_groups(dataset, [sample.group], sample.sample_id) == sum(1 for w in words if w < own)
    assert sample.sample_id == np.array(own, dtype=">u8").tobytes().hex()
    # One checkpoint's exposure says what the impact says of it.
    one = next(c for c in found.checkpoints if c.verdict == "saw")
    (verdict,) = clip_exposure(ledger, one.artifact_id, ClipSelector(clips=(clip,)))
    assert (verdict.stages[0].uses, verdict.stages[0].last_step) == (one.uses, one.last_step)
