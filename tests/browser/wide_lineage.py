"""A ledger whose lineage around one checkpoint has thousands of artifacts, wide and deep on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert

from pipelines.ledger import Ledger
from pipelines.ledger.schema import Base
from tests.benchmarks.ledger.history import History
from tests.benchmarks.ledger.sizes import Sizes

_TABLES = ("artifact", "pipeline_run", "attempt", "stage_run", "run_input", "run_output", "pipeline_run_node", "reuse")
_SOURCES = 150  # that each clip table was curated from
Key = tuple[str, str]


@dataclass(frozen=True)
class WideLineage:
    """`checkpoint` stands in the middle; `first` is a source at the far end above it, `last` a report below."""

    url: str
    checkpoint: str
    first: str
    last: str
    artifacts: int


def build(home: Path, above: int, below: int) -> WideLineage:
    """About `above` artifacts that the checkpoint was made from, `below` that were made from it; the same numbers give
    the same ids."""
    history = History(Sizes.scaled(0.001))
    line: list[Key] = [history.artifact("weights", "start")]
    sources: list[Key] = []
    while sum(row["kind"] != "weights" for row in history.rows["artifact"]) < above:
        sources.append(_rung(history, line))
    middle = line[-1]
    reports = [_child(history, middle, "wide", n) for n in range(below // 8)]  # half of them straight below
    tip, tail = middle, ""
    for n in range(below // 8):
        tail = _child(history, tip, "deep", n)
        tip = _made(history, "train", "checkpoint", ("deep", n, "next"), {"init": tip})
    for row in history.rows["artifact"]:
        row["uri"] = f"{home}/store/{row['artifact_id']}"  # nothing lies there
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger, ledger._db.write(chain=False) as session:
        for table in _TABLES:
            session.execute(insert(Base.metadata.tables[table]), history.rows[table])
    assert reports
    return WideLineage(f"sqlite:///{home / 'ledger.db'}", middle[0], sources[0][0], tail, len(history.rows["artifact"]))


def _rung(history: History, line: list[Key]) -> Key:
    """Sources to clips to a dataset to the next checkpoint of the line; gives one of the sources."""
    number = len(line)
    sources = [_made(history, "source", "source", ("source", number, n), {}) for n in range(_SOURCES)]
    clips = _made(history, "curate", "clips", ("clips", number), {f"source.{n}": s for n, s in enumerate(sources)})
    dataset = _made(history, "encode", "dataset", ("dataset", number), {"clips": clips})
    line.append(_made(history, "train", "checkpoint", ("line", number), {"dataset.main": dataset, "init": line[-1]}))
    return sources[0]


def _child(history: History, parent: Key, *name: object) -> str:
    """A checkpoint trained from another, its samples, scores and report."""
    child = _made(history, "train", "checkpoint", (*name, "checkpoint"), {"init": parent})
    samples = _made(history, "generate", "samples", (*name, "samples"), {"checkpoint": child})
    scores = _made(history, "evaluate", "scores", (*name, "scores"), {"samples": samples})
    return _made(history, "report", "report", (*name, "report"), {"scores": scores})[0]


def _made(history: History, stage: str, kind: str, name: tuple[object, ...], inputs: dict[str, Key]) -> Key:
    key = history.artifact(kind, *name)
    history.run(stage, {}, inputs, {kind: key})
    return key
