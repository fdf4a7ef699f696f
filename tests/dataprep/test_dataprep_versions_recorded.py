"""The version stage through executor, ledger and its own process: lineage, hits, and errors of one line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from version_support import Versions, rows_of, videos

from dataprep.versions.config import VersionConfig
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import ConfigError, ExitClass, InputError
from pipelines.dataset_versions import version_nodes, version_run
from pipelines.execute import PipelineRun
from pipelines.keys import KeyRecord
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger, NewRun
from pipelines.outcomes import NodeStatus
from pipelines.repair import inspect, mend
from pipelines.store import ArtifactStore
from pipelines.workspace import Workspace

NAMES = [f"v{n}" for n in range(6)]


class Home:
    """A workspace whose ledger has datasets, recorded as the encode stage would."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.open(root / "home")
        self.ledger = Ledger.open(self.workspace.ledger_url)
        self.versions = Versions(root, self.workspace.store_uri)
        self.launcher = LocalLauncher()

    def dataset(self, *names: str, source: str = "mine") -> str:
        made = self.versions.dataset(videos(*names, source=source))
        published = next(r for r in ArtifactStore(self.workspace.store_uri).list() if r.artifact_id == made.id)
        record = KeyRecord(
            stage="encode", stage_version=1, config={"of": list(names)}, inputs={}, seed=0, code={"encode.py": "c" * 64}
        )
        claim = self.ledger.claim(record.stage_key, "tester")
        attempt = self.ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
        run = NewRun(
            stage="encode", stage_version=1, stage_key=record.stage_key, key_record=record.canonical(),
            config=record.config, code_digest=record.code_digest, seed=0, environment={},
        )  # fmt: skip
        self.ledger.commit_run(claim, attempt, run, [], {"dataset": published}, {})
        self.ledger.release(claim)
        return made.id

    def run(self, operation: dict[str, object], *datasets: str) -> PipelineRun:
        config = VersionConfig.model_validate({"operation": operation})
        run = version_run(self.workspace, self.ledger, self.launcher, datasets, config)
        run.run_all()
        return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
    opened = Home(tmp_path)
    yield opened
    opened.ledger.close()


def test_a_version_is_a_recorded_run(home: Home):
    a, b = home.dataset(*NAMES), home.dataset("w1", "w2", source="other")
    run = home.run({"kind": "merge"}, a, b[:12])
    assert {n: o.status for n, o in run.outcomes.items()} == {
        f"dataset.{a[:12]}": NodeStatus.HIT, f"dataset.{b[:12]}": NodeStatus.HIT, "version": NodeStatus.RAN,
    }, [o.error for o in run.outcomes.values()]  # fmt: skip
    made = run.outcomes["version"].outputs["dataset"]
    merged = Artifact(made.uri, made.artifact_id, ArtifactKind.DATASET, home.versions.root / "cache")
    assert sorted(rows_of(merged)) == sorted([*NAMES, "w1", "w2"])
    (recorded,) = home.ledger.producers(made.artifact_id)
    assert [p.artifact_id for p in sorted(recorded.inputs, key=lambda p: p.name)] == [a, b]
    assert recorded.metrics["shards_written"] == 0
    assert {a, b} <= set(home.ledger.lineage_up(made.artifact_id).artifacts)
    again = home.run({"kind": "merge"}, a, b)
    assert again.outcomes["version"].status is NodeStatus.HIT
    # And one more on top, mended through the ledger from its parent.
    clip = videos("w1", source="other")[0].clip_id
    less = home.run({"kind": "remove", "clips": [clip]}, made.artifact_id).outcomes["version"].outputs["dataset"]
    row = home.ledger.artifact(less.artifact_id)
    assert inspect(row, deep=True).problem is None
    shard = Path(row.uri) / "shards/000000.tar"
    shard.unlink()
    assert inspect(row, deep=True).problem is not None
    assert list(mend(home.ledger, home.workspace.items_uri, row).repaired) == ["shards/000000.tar"]
    assert inspect(row, deep=True).problem is None


def test_what_cannot_be_is_one_line(home: Home):
    a = home.dataset(*NAMES)
    run = home.run({"kind": "remove", "clips": ["f" * 32]}, a)
    assert run.outcomes["version"].exit_class is ExitClass.CONFIG
    assert "1 of 1 clip ids are not in the dataset" in str(run.outcomes["version"].error)
    assert "f" * 32 in str(run.outcomes["version"].error)
    config = VersionConfig.model_validate({"operation": {"kind": "merge"}})
    with pytest.raises(ConfigError, match="stands twice"):
        version_nodes(home.ledger, [a, a[:20]], config)
    with pytest.raises(InputError):
        version_nodes(home.ledger, ["0" * 64], config)
