"""The micro recipe elsewhere: store on S3, ledger on PostgreSQL, Ray as the engine, a folder of broken files.

Where a run keeps its things and who does its work must not change one byte of an artifact, so every run here
is held against a plain local one.
"""

import json
from pathlib import Path

import nasty
import pyarrow.parquet as pq
import pytest
from e2e_support import Nodes, artifact_ids, m4v, read_json, run_json, statuses

from m4v.core.errors import ExitClass

UNTIL = ("--no-prefect", "--until", "train.t2i")
STAGES = ("source.shapes", "source.street", "curate", "encode", "init", "train.t2i")
RAY = tuple(word for stage in ("curate", "encode") for word in ("--set", f"profiles.local.stages.{stage}.engine=ray"))


@pytest.fixture(scope="module")
def local(micro_home: Path) -> Nodes:
    """The same stages with everything below one home."""
    nodes = {n["node_id"]: n for n in json.loads((micro_home.parent / "run.json").read_bytes())["nodes"]}
    return {node_id: nodes[node_id] for node_id in STAGES}


def test_s3_and_postgresql_hold_the_same_artifacts(
    local: Nodes, tmp_path: Path, s3_root: str, postgres_url: str
) -> None:
    team = {"M4V_STORE": s3_root, "M4V_LEDGER": postgres_url}
    nodes = run_json(tmp_path / "first", "micro", *UNTIL, environment=team)
    assert statuses(nodes) == {"ran"}
    assert artifact_ids(nodes) == artifact_ids(local)
    assert all(o["uri"].startswith(s3_root) for n in nodes.values() for o in n["outputs"].values())
    elsewhere = tmp_path / "second"  # another machine of the team: nothing local is needed
    assert statuses(run_json(elsewhere, "micro", *UNTIL, environment=team)) == {"hit"}
    verified = read_json(elsewhere, "artifacts", "verify", environment=team)
    assert {v["artifact_id"] for v in verified} == set(artifact_ids(local).values())
    assert [v["problem"] for v in verified] == [None] * len(verified)
    assert "the chain holds" in m4v(elsewhere, "ledger", "verify", environment=team).stdout
    checkpoint = nodes["train.t2i"]["outputs"]["checkpoint"]["artifact_id"]
    assert "source" in m4v(elsewhere, "lineage", "up", checkpoint[:12], environment=team).stdout


def test_ray_makes_the_same_artifacts(local: Nodes, tmp_path: Path) -> None:
    home = tmp_path / "home"
    nodes = run_json(home, "micro", "--no-prefect", "--until", "encode", *RAY)
    for node_id in ("curate", "encode"):
        attempt = read_json(home, "runs", "show", nodes[node_id]["attempt_id"])
        request = json.loads((Path(attempt["work_dir"]) / "request.json").read_text())
        assert request["resources"]["engine"] == "ray"
    made = artifact_ids(nodes)
    assert made == {name: identity for name, identity in artifact_ids(local).items() if name in made}


class TestBrokenFiles:
    """A user's folder with broken files beside good ones, through the micro recipe's own curation."""

    @pytest.fixture(scope="class")
    def recipe(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        base = tmp_path_factory.mktemp("nasty")
        wild = nasty.corpus(base / "wild")
        nasty.bad_row_table(base / "wild" / "table")
        path = base / "mine.yaml"
        path.write_text(
            "extends: micro\nname: mine\nsources:\n"
            "  - {name: street, remove: true}\n"
            f"  - {{name: wild, location: {wild}, adapter: {{kind: folder, max_rejected: 1.0}}}}\n"
            "curate: {max_quarantine_rate: 1.0, filters: {min_motion: null, max_flash: null}}\n"
        )
        return path

    @pytest.fixture(scope="class")
    def home(self, recipe: Path) -> Path:
        """One for both: the second finds the sources and the measured videos there."""
        return recipe.parent / "home"

    def test_each_lands_in_quarantine_with_its_reason_and_the_stage_goes_on(self, recipe: Path, home: Path) -> None:
        nodes = run_json(home, str(recipe), "--no-prefect", "--until", "curate")
        assert statuses(nodes) == {"ran"}
        clips = Path(nodes["curate"]["outputs"]["clips"]["uri"])
        reasons: dict[str, set[str]] = {}
        for row in pq.read_table(clips / "quarantine.parquet").to_pylist():
            assert row["source"] == "wild"
            reasons.setdefault(row["path"], set()).add(row["reason"])
        for name, acceptable in nasty.EXPECTED.items():
            assert reasons.pop(name, set()) & acceptable, (name, reasons)
        assert reasons["table/captions.csv"] == {"bad_row"}
        assert not {*nasty.GOOD, "table/row-1.mp4", "table/row-6.mp4"} & set(reasons), reasons
        kept = {(r["source"], r["path"]) for r in pq.read_table(clips / "clips.parquet").to_pylist() if r["kept"]}
        assert {path for source, path in kept if source == "wild"} == {
            *nasty.GOOD,
            "table/row-1.mp4",
            "table/row-6.mp4",
        }
        assert any(source == "shapes" for source, _ in kept), "a bad file keeps no other source back"

    def test_past_the_configured_rate_the_stage_fails_and_says_so(self, recipe: Path, home: Path) -> None:
        command = ("run", str(recipe), "--no-prefect", "--until", "encode", "--set", "curate.max_quarantine_rate=0.1")
        done = m4v(home, *command, code=ExitClass.DATA_INTEGRITY)
        assert "items were quarantined, more than the limit of 10%" in done.stdout
        assert "encode\tblocked" in done.stdout
        assert "stage.log" in done.stdout, "the log's place is told"
        run = read_json(home, "runs", "list")[0]
        assert run["exit_class"] == ExitClass.DATA_INTEGRITY
        assert "quarantined" in run["message"]
        assert "quarantined" in m4v(home, "runs", "logs", run["pipeline_run_id"]).stdout
