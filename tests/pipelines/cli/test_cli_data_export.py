"""`m4v data export`: what PyramidFlow's loader would read is what the shards hold; interrupted, it goes on."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

sys.path.insert(0, str(Path(__file__).parent))

from data_home import DataHome, shared

from dataprep.encode.export import ExportOptions, drawn_latent, export_dataset
from dataprep.shards import SHARDS
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import INDEX, iterate, member, read_index, read_member
from m4v.core.storage import Storage
from m4v.text.saved import read_saved_features
from pipelines.cli.main import main
from pipelines.ledger import Ledger

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(made_once: Callable[[str, Callable[[Path], object]], Path]) -> DataHome:
    return shared(made_once)


@pytest.fixture
def call(made: DataHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str, home: Path | None = None) -> tuple[int, str, str]:
        monkeypatch.setenv("M4V_HOME", str(home or made.home))
        monkeypatch.setattr(sys, "argv", ["m4v", "data", "export", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def dataset_of(home: DataHome) -> Path:
    return home.work / "encoded" / "staging" / "dataset"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_as_pyramidflow(line: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """As its `LengthGroupedVideoTextDataset` opens a line: names as they stand, `torch.load`, 16 channels."""
    latent, text = (torch.load(line[name], map_location="cpu", weights_only=True) for name in ("latent", "text_fea"))
    assert latent.ndim == 5
    assert latent.shape[:2] == (1, 16)
    return latent, text


def test_lines_latents_and_texts_are_the_datasets(made: DataHome, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (made.ids["dataset"][:12], "--out", str(out), "--any-encoder", "--every-caption", "--media", "wild=/w/")
    code, text, _ = call(*arguments, "--json")
    assert code == 0
    told = json.loads(text)
    index = {r["sample_id"]: r for r in iterate(read_index(dataset_of(made) / INDEX))}
    videos, images = lines(out / "video_text.jsonl"), lines(out / "image_text.jsonl")
    assert told["lines"] == {"video": len(videos), "image": len(images)}
    assert told["samples"] == len(index)
    assert {v["sample_id"] for v in videos} | {i["sample_id"] for i in images} == set(index)
    for line in videos:
        row = index[line["sample_id"]]
        folder = dataset_of(made) / SHARDS
        meta = json.loads(read_member(folder, member(row, "meta")))
        number = meta["captions"].index(line["text"])
        latent, features = read_as_pyramidflow(line)
        assert latent.dtype == torch.bfloat16
        assert torch.equal(latent[0], load(read_member(folder, member(row, "latent")))["mean"])
        stored = load(read_member(folder, member(row, "text")))
        assert torch.equal(features["prompt_embed"][0], stored["embedding"][number])
        assert torch.equal(features["pooled_prompt_embed"][0], stored["pooled"][number])
        assert len(read_saved_features(Path(line["text_fea"]))) == 1  # our own reader takes them too
        assert line["video"] == (f"/w/{meta['path']}" if meta["source"] == "wild" else meta["path"])
    assert set(images[0]) == {"image", "text", "sample_id", "clip_id"}
    for entry in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = entry.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    facts = json.loads((out / "export.json").read_text())
    assert facts["complete"] is True
    assert facts["dataset"] == made.ids["dataset"]


def test_an_interrupted_export_goes_on_and_ends_with_the_same_bytes(made: DataHome, call: Call, tmp_path: Path) -> None:
    def run() -> dict[str, Any]:
        code, text, _ = call(
            made.ids["dataset"], "--out", str(tmp_path / "o"), "--prefix", "", "--any-encoder", "--json"
        )
        assert code == 0
        return json.loads(text)

    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in (tmp_path / "o").rglob("*") if p.is_file()}

    first, whole = run(), content()
    assert first["written"] > 2
    assert run()["written"] == 0
    latents = sorted((tmp_path / "o" / "latent").rglob("*.pt"))
    latents[0].unlink()
    latents[1].write_bytes(latents[1].read_bytes()[:-9])  # as a full disk leaves it
    (tmp_path / "o" / "video_text.jsonl").unlink()
    assert run()["written"] == 2
    assert content() == whole


def test_an_export_into_a_store_that_is_killed_goes_on(
    made: DataHome, call: Call, tmp_path: Path, s3_root: str
) -> None:
    """kill -9 in the middle; the same command goes on and ends with the bytes of a local export."""
    place = Storage(f"{s3_root}/out")
    arguments = (made.ids["dataset"], "--prefix", "", "--any-encoder", "--json")

    def killed() -> None:
        def die(done: int, total: int) -> None:
            if done == total // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        artifact = Artifact(str(dataset_of(made)), made.ids["dataset"], ArtifactKind.DATASET, tmp_path / "cache")
        export_dataset(artifact, place, ExportOptions("", any_encoder=True), die)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    kept = {file.path for file in place.list()}
    assert json.loads(place.read_bytes("export.json"))["complete"] is False
    assert "video_text.jsonl" not in kept
    code, text, _ = call(*arguments, "--out", place.uri)
    resumed = json.loads(text)
    assert (code, resumed["folder"]) == (0, place.uri)
    assert call(*arguments, "--out", str(tmp_path / "o"))[0] == 0
    local = {
        p.relative_to(tmp_path / "o").as_posix(): p.read_bytes() for p in (tmp_path / "o").rglob("*") if p.is_file()
    }
    assert {file.path: place.read_bytes(file.path) for file in place.list()} == local
    tensors = {name for name in local if name.endswith(".pt")}
    assert resumed["written"] == len(tensors - kept) < len(tensors)
    code, _, error = call(*arguments, "--out", place.uri, "--seed", "1")
    assert (code, "holds another export" in error) == (10, True)


def test_refusals(made: DataHome, call: Call, tmp_path: Path) -> None:
    dataset = made.ids["dataset"]
    code, _, error = call(dataset, "--out", str(tmp_path / "a"))
    assert code == 10
    assert "do not understand what this codec made: 'dct'" in error
    assert "--any-encoder" in error
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    code, _, error = call(dataset, "--out", str(tmp_path / "b"), "--any-encoder")
    assert (code, "folder is not empty" in error) == (10, True)
    assert call(dataset, "--out", str(tmp_path / "c"), "--any-encoder")[0] == 0
    code, _, error = call(dataset, "--out", str(tmp_path / "c"), "--any-encoder", "--seed", "1")
    assert (code, "holds another export" in error) == (10, True)
    code, _, error = call(dataset, "--media", "wild")
    assert (code, "SOURCE=DIR" in error) == (10, True)
    assert call(made.ids["clips"], "--out", str(tmp_path / "d"))[0] == 10


def test_posterior_draws_are_of_the_sample_and_the_seed() -> None:
    mean, logvar = torch.zeros(16, 2, 8, 8), torch.full((16, 2, 8, 8), -2.0)
    drawn = drawn_latent({"mean": mean, "logvar": logvar}, "k", 0)
    assert drawn.shape == (1, 16, 2, 8, 8)
    assert float(drawn.float().std()) == pytest.approx(float(torch.exp(torch.tensor(-1.0))), rel=0.05)
    assert torch.equal(drawn, drawn_latent({"mean": mean, "logvar": logvar}, "k", 0))
    assert not torch.equal(drawn, drawn_latent({"mean": mean, "logvar": logvar}, "k", 1))
    assert not torch.equal(drawn, drawn_latent({"mean": mean, "logvar": logvar}, "other", 0))
    with pytest.raises(DataIntegrityError, match="not finite"):
        drawn_latent({"mean": mean / 0}, "k", 0)


def test_a_withdrawn_dataset_is_refused(made: DataHome, call: Call, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(made.home, home)
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        ledger.open_takedown(
            {"clips": ["x"]}, reason="asked", requested_by="tester", policy={}, blocks={}, clips=[],
            artifacts=[(made.ids["dataset"], ArtifactKind.DATASET, "holds it")],
        )  # fmt: skip
    code, _, error = call(made.ids["dataset"], "--out", str(tmp_path / "o"), "--any-encoder", home=home)
    assert code not in (0, 1)
    assert "withdrawn" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.deep  # two pipeline runs
def test_what_was_exported_can_be_imported_again(
    made: DataHome, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(made.ids["dataset"], "--out", str(out), "--any-encoder")[0] == 0
    arguments = ["import", str(out), "--layout", "pyramidflow", "--name", "again", "--json"]
    for setting in ("codec={kind: dct}", "text_encoder={kind: minilm, slots: 8}", "texts=reuse", "scale=[0.01, 9]"):
        arguments += ["--set", setting]

    def run() -> tuple[int, dict[str, Any]]:
        monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "argv", ["m4v", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(captured.out or "{}")

    code, told = run()
    assert (code, told["node"]["status"]) == (0, "ran")
    with Ledger.open(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}") as ledger:
        place = Path(ledger.artifact(told["artifact_id"], ArtifactKind.DATASET).uri)
    before = [r for r in iterate(read_index(dataset_of(made) / INDEX)) if r["media"] == "video"]
    after = list(iterate(read_index(place / INDEX)))
    assert len(after) == len(before)
    for part in ("latent_sha256", "text_sha256"):
        assert sorted(str(r[part]) for r in after) == sorted(str(r[part]) for r in before)
    assert run()[1]["node"]["status"] == "hit"  # the same files again cost nothing


def test_an_import_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "argv", ["m4v", "data", "import", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    given = (str(tmp_path / "in"), "--name", "theirs", "--layout")
    code, error = run(*given, "pyramidflow")  # the published encoders are the default
    assert (code, "weights that are not given: 'pyramidflow-text'" in error) == (10, True)
    code, error = run(*given, "fastvideo", "--set", "texts=reuse")
    assert (code, "texts must be `encode`" in error) == (10, True)
    assert run(*given, "tape")[0] == 10
    code, error = run(*given, "fastvideo", "--weights", "vae")
    assert (code, "NAME=ARTIFACT" in error) == (10, True)
    code, error = run(str(tmp_path / "nowhere"), "--name", "theirs", "--layout", "fastvideo")
    assert (code, "does not exist" in error) == (10, True)
