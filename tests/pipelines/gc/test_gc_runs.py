"""Collections beside real runs: what was deleted is made again, what is in use stays, leftovers go by age."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from bench import Bench, open_bench
from stages_for_faults import CountConfig, pipeline

from m4v.core.artifacts import verify
from m4v.core.items import LAST_USED
from m4v.core.storage import Storage
from pipelines.gc import collect_artifacts, find_leftovers, remove_leftovers
from pipelines.gc.leftovers import LeftoverKind
from pipelines.ledger import Status
from pipelines.provenance import BlobStore
from pipelines.rerun_folders import close_folder, open_folder
from pipelines.settings import RetentionConfig
from pipelines.spec import StageNode

NOW = RetentionConfig(runs=1, grace_hours=0, work_days=1, log_days=2, state_days=1, item_days=1)
DAY = 86_400.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def nodes(tmp_path: Path) -> list[StageNode]:
    (tmp_path / "switches").mkdir()
    return pipeline(tmp_path / "switches", first=CountConfig(label="a"))


@pytest.fixture
def others(tmp_path: Path, nodes: list[StageNode]) -> list[StageNode]:
    return pipeline(tmp_path / "switches", first=CountConfig(label="a", factor=3))


def collect(bench: Bench) -> int:
    return len(collect_artifacts(bench.ledger, bench.workspace.store_uri, NOW, by="t").deleted)


def test_what_was_deleted_is_no_cache_hit_and_is_made_again(
    bench: Bench, nodes: list[StageNode], others: list[StageNode]
) -> None:
    first = bench.run(nodes)
    bench.run(others)
    assert collect(bench) > 0
    again = bench.run(nodes)
    ran = [o for o in again.values() if str(o.status) == "ran"]
    assert ran
    assert any("bytes of this" in o.reason and "were deleted on" in o.reason for o in ran)
    for node, outcome in again.items():
        for name, output in outcome.outputs.items():
            assert output.artifact_id == first[node].outputs[name].artifact_id
            verify(Storage(output.uri), output.artifact_id)
            assert bench.ledger.artifact(output.artifact_id).deletion is None
    assert bench.ledger.verify_chain().ok
    assert bench.ledger.verify_chain().stale == ()


def test_a_hit_of_a_running_pipeline_is_not_collected(
    bench: Bench, nodes: list[StageNode], others: list[StageNode]
) -> None:
    bench.run(nodes)
    bench.run(others)
    run = bench.new_run(nodes)
    hit = run.reuse(nodes[0].id)
    assert hit is not None
    held = {o.artifact_id for o in hit.outputs.values()}
    collect(bench)
    assert all(bench.ledger.artifact(a).deletion is None for a in held)
    outcomes = run.run_all()
    assert all(o.status.has_outputs for o in outcomes.values())
    assert str(outcomes[nodes[0].id].status) == "hit"


def test_leftovers_go_by_age_and_use(bench: Bench, nodes: list[StageNode]) -> None:
    bench.run(nodes[:1])
    workspace, store = bench.workspace, Storage(bench.workspace.store_uri)
    (attempt,) = bench.ledger.attempts(status=Status.SUCCEEDED)
    store.write_bytes(f"state/{attempt.stage_key}/weights", b"x")  # as after a crash before it was forgotten
    store.write_bytes(f"state/{'f' * 64}/weights", b"x")  # nobody knows it, but it is fresh
    for digest, used_days_ago in (("1" * 32, 0.5), ("2" * 32, 3)):
        store.write_bytes(f"items/latents/{digest}/ab/abcd", b"item")
        store.write_bytes(f"items/latents/{digest}/{LAST_USED}", b"")
        for path in Path(f"{store.uri}/items/latents/{digest}").rglob("*"):
            os.utime(path, (time.time() - used_days_ago * DAY,) * 2)
    folders = [workspace.work_root / "abcdef" / name for name in ("fresh", "older", "oldest")]
    for days, folder in zip((0, 1.5, 5), folders, strict=True):
        (folder / "staging").mkdir(parents=True)
        (folder / "staging" / "big").write_bytes(b"x" * 100)
        (folder / "log.txt").write_text("log")
        os.utime(folder, (time.time() - days * DAY,) * 2)
    found = find_leftovers(bench.ledger, workspace, NOW)
    assert {(f.kind, f.uri.rsplit("/", 1)[-1]) for f in found} == {
        (LeftoverKind.STATE, attempt.stage_key),
        (LeftoverKind.ITEMS, "2" * 32),
        (LeftoverKind.SCRATCH, "older"),
        (LeftoverKind.LOGS, "oldest"),
    }
    assert next(f for f in found if f.kind is LeftoverKind.SCRATCH).size_bytes == 100
    claim = bench.ledger.claim(attempt.stage_key, "a run")
    gone = remove_leftovers(bench.ledger, workspace, NOW, found)
    assert len(gone) == 3, "the state is of a key that is claimed just now"
    bench.ledger.release(claim)
    assert remove_leftovers(bench.ledger, workspace, NOW, found[:1]) == found[:1]
    assert not store.exists(f"state/{attempt.stage_key}")
    assert store.exists(f"state/{'f' * 64}/weights")
    assert store.exists(f"items/latents/{'1' * 32}/ab/abcd")
    assert not store.exists(f"items/latents/{'2' * 32}")
    assert (folders[1] / "log.txt").exists()
    assert not (folders[1] / "staging").exists()
    assert not folders[2].exists()
    assert find_leftovers(bench.ledger, workspace, NOW) == []


def test_provenance_files_go_when_no_row_cites_them(bench: Bench, nodes: list[StageNode]) -> None:
    bench.run(nodes[:1])
    blobs, store = BlobStore(bench.workspace.store_uri), Storage(bench.workspace.store_uri)
    (run,) = bench.ledger.runs()
    names = ("of a verdict", "of a pipeline run", "of an attempt", "kept again", "new")
    digest = {name: blobs.put(name.encode()).sha256 for name in names}
    bench.ledger.record_verification(run.run_id, "identical", {"details": digest["of a verdict"]})
    begun = {"code": {"diff": {"sha256": digest["of a pipeline run"]}}}
    bench.ledger.begin_pipeline_run("x", {}, environment=begun)
    for path in Path(store.uri, "provenance").glob("*/*"):
        if path.name != digest["new"]:
            os.utime(path, (time.time() - 5 * DAY,) * 2)
    found = [f for f in find_leftovers(bench.ledger, bench.workspace, NOW) if f.kind is LeftoverKind.PROVENANCE]
    assert {f.uri.rsplit("/", 1)[-1] for f in found} == {digest["of an attempt"], digest["kept again"]}
    blobs.put(b"kept again")
    assert [f.uri.rsplit("/", 1)[-1] for f in remove_leftovers(bench.ledger, bench.workspace, NOW, found)] == [
        digest["of an attempt"]
    ]
    assert all(blobs.get(d) == name.encode() for name, d in digest.items() if name != "of an attempt")
    for row in bench.ledger.runs():  # what every run cites of itself
        for attached in row.environment["request"]["attachments"].values():
            blobs.get(attached["sha256"])


def test_what_a_verification_reads_stays_and_what_it_left_goes(
    bench: Bench, nodes: list[StageNode], others: list[StageNode]
) -> None:
    first = bench.run(nodes)
    bench.run(others)
    home, store = bench.workspace.home, bench.workspace.store_uri
    output = next(iter(first[nodes[0].id].outputs.values()))
    folder = open_folder(home, "0verification", [(output.artifact_id, str(output.kind))])
    (folder / "000-count").mkdir()
    collect_artifacts(bench.ledger, store, NOW, by="t", home=home)
    assert bench.ledger.artifact(output.artifact_id).deletion is None
    assert find_leftovers(bench.ledger, bench.workspace, NOW) == []
    close_folder(folder, keep=True)
    assert find_leftovers(bench.ledger, bench.workspace, NOW) == []
    os.utime(folder, (time.time() - 3 * DAY,) * 2)
    (found,) = find_leftovers(bench.ledger, bench.workspace, NOW)
    assert (found.kind, found.why) == (LeftoverKind.VERIFICATION, "kept 3 days ago")
    assert remove_leftovers(bench.ledger, bench.workspace, NOW, [found]) == [found]
    assert not folder.exists()
    collect_artifacts(bench.ledger, store, NOW, by="t", home=home)
    assert bench.ledger.artifact(output.artifact_id).deletion == "done"
