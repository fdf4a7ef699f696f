"""The executor with a team's services: artifacts, state and items on S3, the ledger on PostgreSQL, and kills
while bytes travel."""

import signal

import pytest
from bench import open_bench
from stages_for_faults import CountConfig, pipeline
from test_faults_executor import TIMEOUT_S, artifacts, finish, start, work

from m4v.core.artifacts import MANIFEST, verify
from m4v.core.storage import Storage
from pipelines.store import ArtifactStore


@pytest.fixture
def team(monkeypatch, s3_root, postgres_url) -> str:
    """Store URI; children inherit both places."""
    monkeypatch.setenv("M4V_STORE", s3_root)
    monkeypatch.setenv("M4V_LEDGER", postgres_url)
    return s3_root


def test_same_artifacts_on_s3_and_postgresql_as_on_local_disk(tmp_path, team, monkeypatch):
    with open_bench(tmp_path / "home") as bench:
        first, second = bench.run(pipeline()), bench.run(pipeline())
        changed = bench.run(pipeline(second=CountConfig(label="b", factor=4)))
        assert bench.ledger.verify_chain().ok
    assert [str(o.status) for o in first.values()] == ["ran"] * 3
    assert [str(o.status) for o in second.values()] == ["hit"] * 3
    assert [str(o.status) for o in changed.values()] == ["hit", "ran", "ran"]
    assert first["total"].outputs["sum"].uri.startswith(team)
    assert not (tmp_path / "home" / "store").exists()
    assert [f.path for f in Storage(f"{team}/state").list()] == []
    monkeypatch.delenv("M4V_STORE")
    monkeypatch.delenv("M4V_LEDGER")
    with open_bench(tmp_path / "local") as bench:
        local = bench.run(pipeline())
    ids = [{n: x.artifact_id for o in run.values() for n, x in o.outputs.items()} for run in (first, local)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("upload", [1, 2, 3], ids=["first file", "second file", "manifest"])
def test_kill_while_bytes_travel_to_s3(tmp_path, team, upload):
    home, switches = tmp_path / "home", tmp_path / "switches"
    options = {"nodes": 1, "count": {"items": 3}}
    killed = start(home, switches, **options, die_at=f"pipelines.store:_upload before {upload}")
    assert killed.process.wait(timeout=TIMEOUT_S) == -signal.SIGKILL
    assert list(ArtifactStore(team).list()) == [], "without its manifest nothing is published"
    outcomes = finish(start(home, switches, **options))
    assert "adopted the finished result" in outcomes["count.a"]["reason"]
    (artifact_id,) = artifacts(outcomes).values()
    manifest = verify(Storage(outcomes["count.a"]["outputs"]["lines"]["uri"]), artifact_id, deep=True)
    assert {f.path for f in manifest.files} == {"lines.txt", "deep/label.txt"}
    assert set(work(switches).values()) == {1}
    assert [f.path for f in Storage(team).list() if f.path.endswith(MANIFEST)] != []
