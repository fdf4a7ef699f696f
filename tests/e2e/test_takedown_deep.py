"""One really used clip taken down in a copy of a finished home, every answer held against brute force.

    M4V_TAKEDOWN_HOME=HOME .venv/bin/python -m pytest -m deep -s tests/e2e/test_takedown_deep.py

HOME is that of any finished run, made by this very code (default: a fresh `micro`); it is only read.
M4V_TAKEDOWN_EXPOSURE: what its training noted with M4V_EXPOSURE_LOG (default: `exposure` beside the home, if it is
there); without it the order of the data is replayed step by step. M4V_TAKEDOWN_CLIP: the clip (default: of those that
were filmed and seen the one that fewest checkpoints saw).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from takedown_brute import Brute, reencode, sample_bytes, shard_digests

from dataprep.quarantine import read_quarantine
from pipelines.ledger import Ledger, PipelineRunRow, Status

pytestmark = [pytest.mark.deep, pytest.mark.timeout(4 * 3600)]
TIMEOUT_S = 3 * 3600


@dataclass
class Walk:
    """The copied home; `old` is the dataset version that the run trained on."""

    home: Path
    exposure: Path | None
    facts: dict[str, Any] = field(default_factory=dict)

    def m4v(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Any:
        """What a verb says as JSON; fails the test when it ends otherwise."""
        command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(self.home), *arguments, "--json"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )  # fmt: skip
        said = f"m4v {' '.join(arguments)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode in codes, said
        return json.loads(done.stdout)

    def ledger(self) -> Ledger:
        return Ledger.open(f"sqlite:///{self.home / 'ledger.db'}")

    @cached_property
    def run(self) -> PipelineRunRow:
        """The newest pipeline run that ended well and whose stages trained."""
        with self.ledger() as ledger:
            ended = (Status.SUCCEEDED, Status.REFUSED)
            runs = [r for r in ledger.pipeline_runs(limit=None) if r.status in ended and "train" in r.resolved]
        assert runs, "no run of this home has ended"
        return max(runs, key=lambda r: r.pipeline_run_id)

    @cached_property
    def recipe(self) -> Path:
        """The run's recipe as it was resolved then."""
        path = self.home.parent / "recipe.yaml"
        path.write_text(json.dumps(self.run.resolved))
        return path

    def plan(self) -> dict[str, str]:
        steps = self.m4v("plan", str(self.recipe))["steps"]
        return {step["node_id"]: step["expectation"] for step in steps}

    @cached_property
    def outputs(self) -> dict[str, str]:
        """Artifact by node and output, of the run."""
        with self.ledger() as ledger:
            nodes = [n for n in ledger.nodes(self.run.pipeline_run_id) if n.run_id is not None]
            return {f"{n.node_id}.{p.name}": p.artifact_id for n in nodes for p in ledger.run(str(n.run_id)).outputs}

    @property
    def old(self) -> str:
        return self.outputs["encode.dataset"]


def told(text: str) -> None:
    print(f"\n  {text}", end="", flush=True)


@pytest.fixture(scope="module")
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    named = os.environ.get("M4V_TAKEDOWN_HOME")
    home = Path(named).resolve() if named else request.getfixturevalue("micro_home")
    log = Path(os.environ.get("M4V_TAKEDOWN_EXPOSURE", home.parent / "exposure"))
    place = tmp_path_factory.mktemp("walk") / "home"
    shutil.copytree(home, place, symlinks=True)
    made = Walk(place, log if log.is_dir() else None)
    moved = made.m4v("artifacts", "relocate", str(home), str(place))
    assert {one["outcome"] for one in moved} == {"moved"}, "the copy is whole, and its ledger names it"
    told(f"copied {home}: {len(moved)} artifacts, recipe {made.run.recipe}")
    found = made.plan()
    assert set(found.values()) == {"hit"}, f"the home was made by other code: {found}"
    return made


@pytest.fixture(scope="module")
def brute(walk: Walk) -> Brute:
    with walk.ledger() as ledger:
        return Brute.read(ledger, walk.exposure)


@pytest.fixture(scope="module")
def clip(walk: Walk, brute: Brute) -> str:
    if named := os.environ.get("M4V_TAKEDOWN_CLIP"):
        return named
    with walk.ledger() as ledger:
        clips = Path(ledger.artifact(walk.outputs["curate.clips"], "clips").uri)
    drawn = {r["clip_id"]: r["drawn"] for r in pq.read_table(clips / "hashes.parquet").to_pylist()}
    rows = {r["clip_id"]: r for r in pq.read_table(clips / "clips.parquet").to_pylist()}
    seen = Counter(clip for uses in brute.uses.values() for clip in uses)
    filmed = [c for c in seen if rows[c]["media"] == "video" and not drawn[c] and c in brute.clips_of(walk.old)]
    assert filmed, "no filmed clip was seen"
    chosen = min(filmed, key=lambda c: (seen[c], c))
    told(f"clip {chosen} of {rows[chosen]['source']}: seen by {seen[chosen]} of {len(brute.uses)} checkpoints")
    return chosen


@pytest.fixture(scope="module")
def taken(walk: Walk, brute: Brute, clip: str) -> dict[str, Any]:
    """What `impact`, then `apply` said, and what the old version held before its bytes went."""
    with walk.ledger() as ledger:
        old = Path(ledger.artifact(walk.old, "dataset").uri)
        clips = Path(ledger.artifact(walk.outputs["curate.clips"], "clips").uri)
        row = next(r for r in pq.read_table(clips / "clips.parquet").to_pylist() if r["clip_id"] == clip)
        copied = walk.home.parent / "copycat"
        reencode(ledger, row, copied / "copy.mp4")
    before = {"samples": sample_bytes(old), "shards": shard_digests(old), "row": row, "copycat": copied}
    found = walk.m4v("takedown", "impact", clip)
    done = walk.m4v("takedown", "apply", clip, "--reason", "the owner asked", "--delete", "now")
    return {**before, "impact": found, "applied": done}


def test_impact_is_that_of_a_brute_force_count(walk: Walk, brute: Brute, clip: str, taken: dict[str, Any]) -> None:
    found = taken["impact"]
    by_kind = Counter(h["kind"] for h in found["holders"])
    held = {h["artifact_id"] for h in found["holders"] if h["kind"] in ("dataset", "clips")}
    assert held == brute.holders(clip), "every index and clip table that has the clip, and no other"
    checkpoints = {c["artifact_id"]: c for c in found["checkpoints"]}
    assert checkpoints.keys() == brute.trained_on_holders(clip)
    for checkpoint, one in checkpoints.items():
        steps = brute.uses[checkpoint].get(clip, [])
        assert one["uses"] == len(steps), checkpoint
        assert (one["first_step"], one["last_step"]) == ((steps[0], steps[-1]) if steps else (None, None))
        assert one["verdict"] == brute.verdict(checkpoint, clip)
    made = {p["artifact_id"] for p in found["products"]}
    assert made == brute.products(clip)
    uses = sum(c["uses"] for c in checkpoints.values())
    told(f"impact: {dict(by_kind)}, {len(checkpoints)} checkpoints with {uses} uses, {len(made)} products: as counted")


def test_the_new_version_is_without_it_and_the_others_are_byte_identical(
    walk: Walk, brute: Brute, clip: str, taken: dict[str, Any]
) -> None:
    replaced = {r["artifact_id"]: r["successor"] for r in taken["applied"]["receipt"]["replaced"]}
    with walk.ledger() as ledger:
        made = Path(ledger.artifact(replaced[walk.old], "dataset").uri)
        assert not Path(ledger.artifact(walk.old, "dataset").uri).exists(), "deleted by policy"
    gone = {r["sample_id"] for r in brute.indexes[walk.old] if r["clip_id"] == clip}
    touched = {r["shard"] for r in brute.indexes[walk.old] if r["clip_id"] == clip}
    assert gone
    assert sample_bytes(made) == {s: data for s, data in taken["samples"].items() if s not in gone}
    others = {digest for name, digest in taken["shards"].items() if name not in touched}
    after = shard_digests(made)
    assert others <= set(after.values()), "shards without the clip are byte-identical"
    index = pq.read_table(made / "index.parquet", columns=["clip_id"])["clip_id"].to_pylist()
    assert clip not in index
    told(f"new version {replaced[walk.old][:12]}: {len(gone)} samples gone, {len(index)} the same; "
         f"{len(touched)} shards rewritten, {len(others)} byte-identical")  # fmt: skip
    verified = walk.m4v("artifacts", "verify")
    assert [v["problem"] for v in verified] == [None] * len(verified)


def test_the_receipt_verifies_and_a_changed_one_does_not(walk: Walk, taken: dict[str, Any]) -> None:
    receipt = Path(taken["applied"]["receipt_uri"])
    checked = walk.m4v("takedown", "verify", str(receipt))
    assert checked["ok"]
    told(f"receipt: {len(checked['checks'])} claims hold")
    changed = walk.home.parent / "changed.json"
    content = json.loads(receipt.read_bytes())
    content["takedown"]["reason"] = "another"
    changed.write_text(json.dumps(content))
    assert not walk.m4v("takedown", "verify", str(changed), codes=(20,))["ok"]
    assert walk.m4v("ledger", "verify")["ok"]
    again = walk.m4v("takedown", "apply", content["clips"][0]["clip_id"], "--reason", "again", "--delete", "now")
    assert not again["did_something"]


def test_the_retrain_plan_is_what_plan_says_and_what_hangs_on_the_data(
    walk: Walk, brute: Brute, clip: str, taken: dict[str, Any]
) -> None:
    """Exactly the stages below curation, by the graph of the run as it was recorded: all read what was curated."""
    below = brute.nodes_below(walk.run.pipeline_run_id, "curate")
    found = walk.plan()
    assert {node for node, expectation in found.items() if expectation != "hit"} == below
    cures = {c["pipeline_run_id"]: c for c in taken["applied"]["retrain"]}
    touched = brute.descending(clip)
    cure = next(c for c in cures.values() if c["recipe_digest"] == walk.run.recipe_digest)
    assert set(cure["runs_again"]) == below
    assert set(cure["checkpoints"]) <= touched
    assert {c for cure in cures.values() for c in cure["checkpoints"]} >= touched
    told(f"retrain plan: {cure['command']} runs {len(below)} of {len(found)} stages again, the others are hits")


def test_it_comes_in_again_neither_by_its_id_nor_by_its_pictures(walk: Walk, clip: str, taken: dict[str, Any]) -> None:
    """The recipe is curated again from its sources, and then with a re-encoded copy under another name."""
    case = taken["applied"]["takedown_id"]

    def curated(recipe: Path) -> tuple[dict[tuple[str, str], str], set[str]]:
        done = walk.m4v("run", str(recipe), "--no-prefect", "--until", "curate")
        (node,) = [n for n in done["nodes"] if n["node_id"] == "curate"]
        place = Path(node["outputs"]["clips"]["uri"])
        rows = [r for r in read_quarantine(place / "quarantine.parquet") if r.reason == "takedown"]
        clips = pq.read_table(place / "clips.parquet", columns=["clip_id"])["clip_id"].to_pylist()
        return {(r.source, r.path): r.detail for r in rows}, set(clips)

    row = taken["row"]
    refused, clips = curated(walk.recipe)
    assert refused[row["source"], row["path"]].startswith(f"takedown {case}: clip {clip}")
    assert clip not in clips
    told(f"by its id: {refused[row['source'], row['path']]}")
    resolved = json.loads(walk.recipe.read_text())
    copycat = {
        "name": "copycat", "location": str(taken["copycat"]),
        "adapter": {"kind": "folder", "require_captions": False, "licence": "CC0-1.0"},
    }  # fmt: skip
    (walk.home.parent / "copycat.yaml").write_text(json.dumps({**resolved, "sources": [*resolved["sources"], copycat]}))
    refused, _ = curated(walk.home.parent / "copycat.yaml")
    assert refused["copycat", "copy.mp4"] == f"takedown {case}: pictures like those of clip {clip}"
    told(f"by its pictures: {refused['copycat', 'copy.mp4']}\n")
