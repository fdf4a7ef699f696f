"""Back-filling the clip index, and noticing when it is not whole."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clip_material import random_clips, shards_of, write_dataset, write_listing, write_table
from ledger_scenario import Scenario

from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.cli.main import main
from pipelines.ledger import Ledger
from pipelines.membership import parse_selector
from pipelines.membership.backfill import backfill, check_index, index_again
from pipelines.takedown.affected import affected_by
from pipelines.workspace import Workspace

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose ledger knows a listing, a clip table and a dataset from before there was an index."""
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    clips = random_clips(random.Random(1), 30)
    with Ledger.open(Workspace.open().ledger_url) as ledger:
        ledger.import_artifact(write_listing(tmp_path / "source", "web", {"page/1": "https://host/1"}))
        ledger.import_artifact(write_table(tmp_path / "clips", clips))
        ledger.import_artifact(write_dataset(tmp_path / "dataset", shards_of(clips)))
    return tmp_path


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`m4v WORDS`: exit code and standard output."""

    def called(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return called


def test_artifacts_from_before_are_brought_in_once(call: Call) -> None:
    code, told = call("ledger", "verify", "--json")
    assert code == 0
    assert [m["kind"] for m in json.loads(told)["unindexed"]] == ["source", "clips", "dataset"]
    code, told = call("ledger", "index", "--json")
    assert (code, [(i["kind"], i["rows"]) for i in json.loads(told)][:2]) == (0, [("source", 1), ("clips", 30)])
    assert call("ledger", "index") == (0, "every artifact is in the clip index\n")
    code, told = call("ledger", "verify", "--json")
    assert (code, json.loads(told)["unindexed"], json.loads(told)["clip_index"]) == (0, [], [])


def test_nothing_is_answered_from_half_an_index_unsaid(home: Path) -> None:
    workspace, selector = Workspace.open(), parse_selector(["web"])
    with Ledger.open(workspace.ledger_url) as ledger:
        with pytest.raises(InputError, match="Next: m4v ledger index: 3 artifacts are not in the clip index yet"):
            ledger.find_clips(selector)
        table = ledger.artifacts(kind="clips")[0]
        ledger.index_members(table.artifact_id, table.kind, Storage(table.uri))
        assert ledger.find_clips(selector)
        with pytest.raises(InputError, match="2 artifacts are not in the clip index: their clips would be missed"):
            affected_by(ledger, workspace, selector)


def test_what_cannot_be_indexed_is_told_and_the_rest_goes_on(home: Path, call: Call) -> None:
    (home / "clips" / "clips.parquet").write_bytes(b"no table")
    with Ledger.open(Workspace.open().ledger_url) as ledger:
        done = list(backfill(ledger))
        assert [(i.kind, i.problem is None) for i in done] == [("source", True), ("clips", False), ("dataset", True)]
        assert "clips.parquet cannot be read" in str(done[1].problem)
    assert call("ledger", "index")[0] == 20


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("DELETE FROM part_sample WHERE sample_id = x''", "rows, it had"),
        ("UPDATE part_group SET samples = samples + 1", "samples in groups"),
        ("DELETE FROM part_ids", "are not as many as its samples"),
        ("UPDATE artifact_group SET samples = samples + 1", "do not add up"),
        ("DELETE FROM clip", "rows are of clips that no search finds"),
        ("DELETE FROM hash_block", "0 clips have perceptual hashes"),
        ("DELETE FROM artifact_part", "0 rows in its parts"),
        ("UPDATE clip_index SET members = 7", "rows in its table, 7 indexed"),
    ],
)
def test_damage_is_seen(call: Call, damage: str, told: str) -> None:
    call("ledger", "index")
    url = Workspace.open().ledger_url
    with Ledger.open(url) as ledger:
        assert check_index(ledger) == []
        Scenario(ledger, url).sql(damage)
        assert any(told in line for line in check_index(ledger))
    code, _ = call("ledger", "verify")
    assert code == 20


def test_the_index_of_an_artifact_is_made_anew_from_its_bytes(home: Path, call: Call) -> None:
    call("ledger", "index")
    url = Workspace.open().ledger_url
    with Ledger.open(url) as ledger:
        table, dataset = (ledger.artifacts(kind=kind)[0].artifact_id for kind in ("clips", "dataset"))
        groups = ledger.groups_of(dataset)
        Scenario(ledger, url).sql("DELETE FROM part_sample", "DELETE FROM part_ids", "UPDATE part_group SET samples=1")
        for artifact in (table, dataset):
            assert index_again(ledger, artifact[:12]).problem is None
        assert check_index(ledger) == []
        assert ledger.groups_of(dataset) == groups
        path = home / "clips" / "clips.parquet"
        path.write_bytes(path.read_bytes()[::-1])
        with pytest.raises(DataIntegrityError, match="differs from the manifest"):
            index_again(ledger, table)
        shutil.rmtree(home / "clips")
        with pytest.raises(DataIntegrityError, match="artifact has no manifest"):
            index_again(ledger, table)
        assert ledger.is_indexed(table, "clips")  # what cannot be made again is not thrown away


def test_a_finished_run_is_in_the_index(micro_home: Path) -> None:
    with Ledger.open(f"sqlite:///{micro_home / 'ledger.db'}") as ledger:
        assert ledger.unindexed() == []
        assert check_index(ledger) == []
        (dataset,) = ledger.artifacts(kind="dataset")
        index = pq.read_table(Path(Storage(dataset.uri).local_root) / "index.parquet")
        clips = index["clip_id"].to_pylist()
        assert ledger.artifacts_with(clips)[dataset.artifact_id] == set(clips)
        assert len(ledger.artifacts_with(clips)) == 2  # and the clip table that they were encoded from
        assert sum(count for _, count in ledger.groups_of(dataset.artifact_id)) == index.num_rows
