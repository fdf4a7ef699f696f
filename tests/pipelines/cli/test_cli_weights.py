"""`m4v weights list|check|import` as a user calls them: output, exit codes, what stands in the ledger afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_weights import CONFIG, ENTRY, FOLDER, MODEL, write_published

from m4v.core.errors import ExitClass
from pipelines.cli.weights import default_name
from pipelines.recipe import WeightsEntry

M4v = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def weights_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path / "root"))


def read(m4v: M4v, *arguments: str, code: int = ExitClass.OK) -> Any:
    ended, out, error = m4v(*arguments, "--json")
    assert ended == code, error
    return json.loads(out)


def test_the_list_says_what_there_is_where_it_belongs_and_what_is_here(m4v: M4v, tmp_path: Path) -> None:
    write_published(tmp_path / "root/rain1011/pyramid-flow-miniflux")
    listed = read(m4v, "weights", "list")
    assert listed["root"] == str(tmp_path / "root")
    entry = next(e for e in listed["entries"] if e["name"] == ENTRY)
    assert (entry["files_present"], entry["files_total"], entry["importable"]) == (2, 2, True)
    assert entry["folder"] == str(tmp_path / "root/rain1011/pyramid-flow-miniflux")
    assert (entry["hub"], entry["licence"]) == ("rain1011/pyramid-flow-miniflux", "Apache-2.0")
    assert "hf download rain1011/pyramid-flow-miniflux" in entry["fetch_command"]
    assert entry["size_bytes"] > 7 * 10**9
    other = next(e for e in listed["entries"] if e["name"] == "hpsv2.1")
    assert other["files_present"] == 0
    code, out, _ = m4v("weights", "list")
    assert code == ExitClass.OK
    lines = {line.split("\t")[0]: line.split("\t") for line in out.splitlines()}
    assert lines[ENTRY][1:4] == ["2 of 2", "7.3 GiB", "Apache-2.0"]
    assert set(lines) >= {"pyramidflow-vae", "pyramidflow-text", "wan2.1-t2v-1.3b", "hpsv2.1", "clip-vit-l-14"}


def test_check_ends_with_what_is_wrong(m4v: M4v, tmp_path: Path, published: Path) -> None:
    root = ("--from", str(published))
    code, out, _ = m4v("weights", "check", ENTRY, *root)
    assert code == ExitClass.OK
    assert "76 tensors, 364608 parameters, match the model" in out
    report = read(m4v, "weights", "check", ENTRY, *root, "--digest")["entries"][0]
    assert report["ok"]
    assert all(len(file["sha256"]) == 64 for file in report["files"])
    assert read(m4v, "weights", "check")["entries"] == []
    assert "no entry has a file below" in m4v("weights", "check")[1]

    file = published / FOLDER / MODEL
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    code, out, _ = m4v("weights", "check", ENTRY, *root)
    assert code == ExitClass.DATA_INTEGRITY
    assert "not ok" in out
    assert MODEL in out
    file.write_bytes(whole)
    config = json.loads((published / FOLDER / CONFIG).read_text())
    (published / FOLDER / CONFIG).write_text(json.dumps({**config, "num_single_layers": 3}))
    code, out, _ = m4v("weights", "check", ENTRY, *root)
    assert code == ExitClass.DATA_INTEGRITY
    assert "tensors missing:" in out
    assert "single_transformer_blocks.2." in out
    file.unlink()
    assert m4v("weights", "check", ENTRY, *root)[0] == ExitClass.CONFIG
    code, _, error = m4v("weights", "check", "pyramidflow-dit-768")
    assert (code, error.count("\n")) == (ExitClass.CONFIG, 1)
    assert f"did you mean {ENTRY}" in error


def test_import_is_recorded_and_the_second_one_is_a_hit(m4v: M4v, published: Path) -> None:
    arguments = ("weights", "import", ENTRY, "--from", str(published), "--name", "dit")
    first, second = read(m4v, *arguments), read(m4v, *arguments)
    assert (first["node"]["status"], second["node"]["status"]) == ("ran", "hit")
    assert first["artifact_id"] == second["artifact_id"] is not None
    shown = read(m4v, "artifacts", "show", first["artifact_id"])
    assert {f["path"] for f in shown["manifest"]["files"]} >= {"model.safetensors", "config.json"}
    assert shown["summary"]["entry"] == ENTRY
    runs = read(m4v, "runs", "list")
    assert [(r["recipe"], r["status"]) for r in runs] == [("weights import", "succeeded")] * 2
    code, out, _ = m4v("runs", "show", first["pipeline_run_id"])
    assert code == ExitClass.OK
    assert "weights.dit\tran" in out
    code, out, _ = m4v(*arguments)
    assert code == ExitClass.OK
    line = out.splitlines()[-1].removeprefix("in a recipe: ")
    assert yaml.safe_load(line) == {"name": "dit", "entry": ENTRY, "location": f"artifact:{first['artifact_id']}"}


def test_what_cannot_be_imported_says_why_and_leaves_a_failed_run(m4v: M4v, published: Path, tmp_path: Path) -> None:
    config = published / FOLDER / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), "joint_attention_dim": 4096}))
    code, out, _ = m4v("weights", "import", ENTRY, "--from", str(published))
    assert code == ExitClass.DATA_INTEGRITY
    assert "context_embedder.weight: [64, 384], the model needs [64, 4096]" in out
    assert read(m4v, "artifacts", "list") == []
    assert [r["status"] for r in read(m4v, "runs", "list")] == ["failed"]

    (tmp_path / "empty").mkdir()
    code, out, _ = m4v("weights", "import", ENTRY, "--from", str(tmp_path / "empty"))
    assert code == ExitClass.CONFIG
    assert f"missing      {FOLDER}/{MODEL}" in out
    for arguments, words in (
        (("weights", "import", ENTRY, "--from", str(tmp_path / "none")), "folder does not exist"),
        (("weights", "import", "vbench-raft"), "never imported"),
        (("weights", "import", ENTRY, "--name", "My Weights"), "name"),
    ):
        code, _, error = m4v(*arguments)
        assert (code, error.count("\n")) == (ExitClass.CONFIG, 1), error
        assert words in error


def test_a_default_name_is_one_that_recipes_allow() -> None:
    assert default_name("wan2.1-t2v-1.3b") == "wan2-1-t2v-1-3b"
    assert WeightsEntry(name=default_name("wan2.1-t2v-1.3b"), entry="wan2.1-t2v-1.3b").location is None
