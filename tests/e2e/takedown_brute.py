"""What a takedown concerns, counted the long way: every table of every artifact, every step of every training stage,
every run of the ledger. Nothing here asks the clip index or the closed form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq

from m4v.core.canonical import digest_bytes, digest_file
from m4v.core.shard_index import MEMBERS, member, read_member
from m4v.video_io import write_mp4
from pipelines.ledger import Ledger, RunRow
from training.exposure import ExposureState, order_of, surviving_line
from training.split import is_held_out

MADE = ("samples", "scores", "report")


@dataclass
class Brute:
    """`indexes`: rows of every dataset version. `tables`: clip ids of every clip table. `uses`: by checkpoint, then
    clip, the steps of its own stage that consumed it. `runs`: every stage run. `kinds`: of every artifact."""

    indexes: dict[str, list[dict[str, Any]]]
    tables: dict[str, set[str]]
    uses: dict[str, dict[str, list[int]]]
    states: dict[str, ExposureState]
    runs: list[RunRow]
    kinds: dict[str, str]
    nodes: dict[str, dict[str, str]]  # by pipeline run: node id -> stage run

    @classmethod
    def read(cls, ledger: Ledger, log: Path | None) -> Brute:
        rows = [a for a in ledger.artifacts(limit=None) if a.deletion is None]
        indexes = {
            a.artifact_id: pq.read_table(Path(a.uri) / "index.parquet").to_pylist() for a in rows if a.kind == "dataset"
        }
        tables = {a.artifact_id: _clips_of(Path(a.uri)) for a in rows if a.kind == "clips"}
        states = {
            a.artifact_id: ExposureState.model_validate_json((Path(a.uri) / "training.json").read_bytes())
            for a in rows
            if a.kind == "checkpoint" and (Path(a.uri) / "training.json").is_file()
        }
        states = {c: state for c, state in states.items() if state.dataset_id in indexes}
        nodes = {
            r.pipeline_run_id: {n.node_id: str(n.run_id) for n in ledger.nodes(r.pipeline_run_id) if n.run_id}
            for r in ledger.pipeline_runs(limit=None)
        }
        made = cls(indexes, tables, {}, states, ledger.runs(limit=None), {a.artifact_id: a.kind for a in rows}, nodes)
        for checkpoint, state in states.items():
            place = Path(next(a.uri for a in rows if a.artifact_id == str(state.dataset_id)))
            made.uses[checkpoint] = made._uses(state, place / "index.parquet", log)
        return made

    def _uses(self, state: ExposureState, index: Path, log: Path | None) -> dict[str, list[int]]:
        clip_of = {r["sample_id"]: r["clip_id"] for r in self.indexes[str(state.dataset_id)]}
        if log is not None:
            line = surviving_line(log, state.stage, state.cursor)
            drawn = [[sample for _, sample, _ in step] for step in line]
        else:
            order = order_of(state, pq.read_table(index))
            kept = {s for s, clip in clip_of.items() if not is_held_out(clip, order.config.held_out)}
            drawn = [
                [s for pack in order.packs(step) for s in pack.samples if s in kept] for step in range(state.cursor)
            ]
        found: dict[str, list[int]] = defaultdict(list)
        for step, samples in enumerate(drawn):
            for sample in samples:
                found[clip_of[sample]].append(step)
        return found

    def clips_of(self, dataset: str) -> set[str]:
        return {r["clip_id"] for r in self.indexes[dataset]}

    def holders(self, clip: str) -> set[str]:
        """Datasets with a sample of the clip, and clip tables that have it."""
        tables = {a for a, clips in self.tables.items() if clip in clips}
        return tables | {a for a in self.indexes if clip in self.clips_of(a)}

    def trained_on_holders(self, clip: str) -> set[str]:
        """Checkpoints of stages that read a dataset with the clip, and those that go on from one of them."""
        found: set[str] = set()
        while True:
            before = len(found)
            found |= {
                c
                for c, state in self.states.items()
                if clip in self.clips_of(str(state.dataset_id)) or state.init_from in found
            }
            if len(found) == before:
                return found

    def verdict(self, checkpoint: str, clip: str) -> str:
        if self.uses[checkpoint].get(clip):
            return "saw"
        line, before = set(), self.states[checkpoint].init_from
        while before in self.states and before not in line:
            if self.uses[before].get(clip):
                return "descends"
            line.add(before)
            before = self.states[before].init_from
        return "contains"

    def descending(self, clip: str) -> set[str]:
        """Checkpoints that saw it, or come from one that did."""
        return {c for c in self.trained_on_holders(clip) if self.verdict(c, clip) != "contains"}

    def products(self, clip: str) -> set[str]:
        """Samples, scores and reports that anything affected went into."""
        reached = self.holders(clip) | self.trained_on_holders(clip)
        found: set[str] = set()
        while True:
            before = len(found)
            for run in self.runs:
                if any(p.artifact_id in reached or p.artifact_id in found for p in run.inputs):
                    found |= {p.artifact_id for p in run.outputs if p.kind in MADE}
            if len(found) == before:
                return found

    def nodes_below(self, pipeline_run: str, node: str) -> set[str]:
        """A node of a run and all that read, directly or not, what it made."""
        by_id = {run.run_id: run for run in self.runs}
        runs = {name: by_id[run_id] for name, run_id in self.nodes[pipeline_run].items()}
        found = {node}
        while True:
            made = {p.artifact_id for name in found for p in runs[name].outputs}
            more = {name for name, run in runs.items() if any(p.artifact_id in made for p in run.inputs)} | found
            if more == found:
                return found
            found = more


def _clips_of(table: Path) -> set[str]:
    return set(pq.read_table(table / "clips.parquet", columns=["clip_id"])["clip_id"].to_pylist())


def sample_bytes(dataset: Path) -> dict[str, list[str]]:
    """Digests of every member of every sample, read from its shard."""
    rows: Iterable[dict[str, Any]] = pq.read_table(dataset / "index.parquet").to_pylist()
    shards = dataset / "shards"
    return {
        r["sample_id"]: [digest_bytes(read_member(shards, member(r, name))) for name in MEMBERS] for r in rows
    }  # fmt: skip


def shard_digests(dataset: Path) -> dict[str, str]:
    return {p.name: digest_file(p) for p in sorted((dataset / "shards").iterdir())}


def reencode(ledger: Ledger, row: dict[str, Any], target: Path) -> None:
    """The clip's frames as a file of their own: other bytes, other name, other quality."""
    source = _file_of(ledger, row)
    frames = []
    with av.open(str(source)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if row["first_frame"] <= number < row["first_frame"] + row["frames"]:
                frames.append(frame.to_ndarray(format="rgb24"))
    assert len(frames) == row["frames"], source
    pictures = np.stack(frames)
    height, width = (n - n % 2 for n in pictures.shape[1:3])
    target.parent.mkdir(parents=True)
    write_mp4(target, np.ascontiguousarray(pictures[:, :height, :width]), row["fps"], crf=26)
    target.with_suffix(".txt").write_text(row["captions"][0] if row["captions"] else "a film")


def _file_of(ledger: Ledger, row: dict[str, Any]) -> Path:
    """Where the clip's source file lies: in a source artifact, or where its collection was read."""
    places = []
    for run in ledger.runs(stage="source", limit=None):
        if run.config.get("name") == row["source"]:
            places += [Path(ledger.artifact(p.artifact_id, p.kind).uri) / "media" for p in run.outputs]
            places += [Path(p) for p in run.environment["request"]["locations"].values()]
    found = [place / row["path"] for place in places if (place / row["path"]).is_file()]
    return next(path for path in found if digest_file(path) == row["source_digest"])
