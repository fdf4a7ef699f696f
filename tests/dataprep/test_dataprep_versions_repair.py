"""Damaged datasets: every damage is named by shard, key and member, and mended from what survives."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import encode_support as support
import numpy as np
import pytest
import torch
from safetensors.torch import save
from version_support import ENCODER, Clip, Versions, rows_of, videos, write_dataset

from dataprep.encode.dataset import DATASET
from dataprep.shards import Sample
from dataprep.versions import repair as repair_module
from dataprep.versions.check import Problem, check_dataset, read_tensors
from dataprep.versions.repair import Copy, repair
from dataprep.versions.sources import OtherDataset
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, verify, write_manifest
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import INDEX, read_index
from m4v.core.stage import InputRef, OutputResult
from m4v.core.storage import Storage
from pipelines.cli.main import main
from pipelines.ledger import Ledger, NewRun
from pipelines.store import ArtifactRecord, ArtifactStore

NAMES = [f"v{n}" for n in range(6)]


def _flip(path: Path, place: int) -> None:
    """Damage one byte without touching what else links to the file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "drawn", [*videos(*NAMES), Clip("p", media="image", end_us=0)])
    return tmp_path / "drawn"


def _table(directory: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = read_index(directory / INDEX).to_pylist()
    return rows


def _row(directory: Path, source_id: str) -> dict[str, object]:
    return next(row for row in _table(directory) if row["source_id"] == source_id)


def _problems(directory: Path) -> list[Problem]:
    return list(check_dataset(Storage(str(directory))))


def test_a_sound_dataset_has_no_problems(drawn: Path):
    assert _problems(drawn) == []


@pytest.mark.parametrize("member", ["latent", "text", "meta"])
def test_a_flipped_byte_is_named_by_shard_key_and_member(drawn: Path, member: str):
    row = _row(drawn, "v3")
    shard = f"shards/{row['shard']}"
    _flip(drawn / shard, int(str(row[f"{member}_offset"])) + 9)
    assert _problems(drawn) == [Problem(shard, str(row["sample_id"]), member, "bytes differ from the index")]


def test_a_shard_cut_short_names_what_it_lost(drawn: Path):
    row = _row(drawn, "v3")
    path = drawn / "shards" / str(row["shard"])
    path.write_bytes(path.read_bytes()[: int(str(row["text_offset"])) - 512])
    later = {str(r["sample_id"]) for r in _table(drawn) if r["shard"] == row["shard"]
             and int(str(r["latent_offset"])) > int(str(row["latent_offset"]))}  # fmt: skip
    found = {(p.key, p.member) for p in _problems(drawn) if p.what == "is missing"}
    assert found == {(str(row["sample_id"]), m) for m in ("text", "meta")} | {
        (key, m) for key in later for m in ("latent", "text", "meta")
    }


@pytest.mark.parametrize("cut", [0, 100, 700, 5000])
def test_a_broken_tar_is_a_problem_and_no_crash(drawn: Path, cut: int):
    path = drawn / "shards/000001.tar"
    path.write_bytes(path.read_bytes()[:cut] if cut else b"")
    assert {p.file for p in _problems(drawn)} == {"shards/000001.tar"}


def test_gone_and_stray_shards(drawn: Path):
    (drawn / "shards/000001.tar").rename(drawn / "shards/000009.tar")
    assert [(p.file, p.what) for p in _problems(drawn)] == [
        ("shards/000001.tar", "is gone"), ("shards/000009.tar", "is not in the index"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [INDEX, DATASET])
@pytest.mark.parametrize("damage", [None, b"", b"PAR1 but not really PAR1"])
def test_index_and_facts_that_do_not_parse(drawn: Path, name: str, damage: bytes | None):
    (drawn / name).unlink() if damage is None else (drawn / name).write_bytes(damage)
    (problem,) = _problems(drawn)
    assert (problem.file, problem.key) == (name, "")


class _Changed(Clip):
    """A sample whose latent is what a broken encoder would leave; its digests are right."""

    make: Callable[[], torch.Tensor]

    def sample(self, encoder: str = ENCODER) -> Sample:
        sample = super().sample(encoder)
        return Sample(sample.key, sample.group, {**sample.members, "latent": save({"mean": type(self).make()})})


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.full((16, 3, 8, 16), float("nan")).bfloat16(), "mean holds values that are not finite"),
        (lambda: torch.full((16, 3, 8, 16), float("-inf")).bfloat16(), "mean holds values that are not finite"),
        (lambda: torch.zeros(16, 3, 8, 8).bfloat16(), "mean has shape [16, 3, 8, 8], index says [16, 3, 8, 16]"),
        (lambda: torch.zeros(16, 3, 8, 16), "mean is F32, not bf16"),
    ],
)
def test_whole_bytes_with_a_wrong_latent(tmp_path: Path, make: Callable[[], torch.Tensor], what: str):
    broken = type("Broken", (_Changed,), {"make": staticmethod(make)})("bad")
    write_dataset(tmp_path / "d", [*videos("v0"), broken])
    (problem,) = _problems(tmp_path / "d")
    assert problem == Problem("shards/000000.tar", broken.sample_id(), "latent", what)


def test_a_sample_of_other_encoders_is_found(drawn: Path):
    facts = json.loads((drawn / DATASET).read_text())
    (drawn / DATASET).write_text(json.dumps({**facts, "encoder_digest": digest_json("others")}))
    found = _problems(drawn)
    assert len(found) == 7
    assert {p.what for p in found} == {f"is of other encoders than {digest_json('others')[:12]}"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_finiteness_agrees_with_torch(dtype: torch.dtype):
    rng = np.random.default_rng(0)
    bits = torch.from_numpy(rng.integers(0, 1 << 16, 4096, dtype=np.uint16).view(np.int16))
    if dtype == torch.float32:
        bits = torch.from_numpy(rng.integers(0, 1 << 32, 4096, dtype=np.uint32).view(np.int32))
    for value in bits.view(dtype)[:512]:
        tensor = value.reshape(1).contiguous()
        assert read_tensors(save({"x": tensor}))["x"].finite == bool(torch.isfinite(tensor).all())
    assert not read_tensors(save({"x": torch.tensor([1.0, float("inf")], dtype=dtype)}))["x"].finite


def test_no_safetensors():
    for data in (b"", b"12345678", b"\x02" + bytes(7) + b"[]", b"\xff" * 64):
        with pytest.raises(DataIntegrityError, match="safetensors"):
            read_tensors(data)


# Repair


@pytest.fixture(params=["local", "s3"])
def versions(request: pytest.FixtureRequest, tmp_path: Path) -> Versions:
    root = str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_root")
    return Versions(tmp_path, root)


def _damage(artifact: Artifact, path: str, place: int = 700) -> None:
    if artifact.storage.is_local:
        _flip(artifact.storage.local_root / path, place)
        return
    data = bytearray(artifact.storage.read_bytes(path))
    data[place] ^= 1
    artifact.storage.write_bytes(path, bytes(data))


def test_a_shared_shard_comes_back_from_the_other_version(versions: Versions):
    clips = videos(*NAMES)
    parent = versions.dataset(clips)
    child = versions.apply({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    shared = next(f for f in child.manifest.files if f.path.startswith("shards/") and f.sha256 in
                  {g.sha256 for g in parent.manifest.files})  # fmt: skip
    _damage(child, shared.path)
    with pytest.raises(DataIntegrityError):
        verify(child.storage, child.id)
    twin = next(f.path for f in parent.manifest.files if f.sha256 == shared.sha256)
    copies = {shared.sha256: [Copy(parent.storage, twin)]}
    found = repair(child.storage, child.manifest, lambda sha256: copies.get(sha256, []), [])
    assert found.repaired == {shared.path: f"the same file of artifact {parent.id[:12]}"}
    verify(child.storage, child.id)
    if child.storage.is_local:
        assert child.path(shared.path).samefile(parent.path(twin)), "shared again"


def test_a_shard_is_built_from_its_own_members_and_another_version(versions: Versions):
    clips = videos(*NAMES)
    parent = versions.dataset(clips)
    child = versions.apply({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    written = f"shards/{next(r['shard'] for r in rows_of(child).values() if r['shard'] != '000000.tar')}"
    _damage(child, written)
    found = repair(child.storage, child.manifest, lambda _: [], [OtherDataset(parent)])
    assert found.repaired == {written: f"dataset {parent.id[:12]} and its own whole members"}
    verify(child.storage, child.id)


def test_an_index_is_read_back_from_its_shards(versions: Versions):
    parent = versions.dataset([*videos(*NAMES), Clip("p", media="image", end_us=0)])
    _damage(parent, INDEX)
    parent.storage.delete("null_text.safetensors")
    found = repair(parent.storage, parent.manifest, lambda _: [], [])
    assert found.repaired == {INDEX: "its shards"}
    assert found.left == {"null_text.safetensors": "no artifact holds another copy"}


def test_what_is_nowhere_stays_as_it_is(versions: Versions):
    parent = versions.dataset(videos(*NAMES))
    row = rows_of(parent)["v2"]
    path = f"shards/{row['shard']}"
    _damage(parent, path, int(str(row["text_offset"])))
    before = parent.storage.read_bytes(path)
    found = repair(parent.storage, parent.manifest, lambda _: [], [OtherDataset(parent)])
    assert found.repaired == {}
    assert f"{row['sample_id']}.text.safetensors" in found.left[path]
    assert parent.storage.read_bytes(path) == before


def test_strays_are_told_and_leftovers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parent = Versions(tmp_path, str(tmp_path / "store")).dataset(videos(*NAMES))
    root = parent.storage.local_root
    (root / "shards/notes.txt").write_text("mine")
    (root / "shards/.000000.tar.ab.tmp").write_bytes(b"half")
    monkeypatch.setattr(repair_module, "UNFINISHED_S", -1.0)
    found = repair(parent.storage, parent.manifest, lambda _: [], [])
    assert found.left == {"shards/notes.txt": "is no file of this artifact: move it elsewhere"}
    assert not (root / "shards/.000000.tar.ab.tmp").exists()
    assert (root / "shards/notes.txt").exists()


_KILLED = """
import os, signal, sys
from pathlib import Path
from dataprep.versions import repair as module
from dataprep.versions.sources import OtherDataset
from m4v.core.artifacts import Artifact, ArtifactKind
uri, artifact_id, other_uri, other_id, cache, when = sys.argv[1:]
install, calls = module._install, []
def dying(made, place, file):
    calls.append(file.path)
    if len(calls) == 2 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    install(made, place, file)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
module._install = dying
mine = Artifact(uri, artifact_id, ArtifactKind.DATASET, Path(cache))
other = Artifact(other_uri, other_id, ArtifactKind.DATASET, Path(cache))
module.repair(mine.storage, mine.manifest, lambda _: [], [OtherDataset(other)])
"""


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.deep)])
def test_a_repair_that_is_killed_goes_on(tmp_path: Path, when: str):
    versions = Versions(tmp_path, str(tmp_path / "store"))
    mine = versions.dataset(videos(*NAMES), samples=2)
    other = versions.dataset([*videos(*NAMES), *videos("v9")])
    for shard in ("000000", "000001", "000002"):
        _damage(mine, f"shards/{shard}.tar")
    arguments = [mine.storage.uri, mine.id, other.storage.uri, other.id, str(tmp_path / "cache"), when]
    child = subprocess.run([sys.executable, "-c", _KILLED, *arguments], env=_environment(), check=False)
    assert child.returncode == -signal.SIGKILL
    found = repair(mine.storage, mine.manifest, lambda _: [], [OtherDataset(other)])
    assert len(found.repaired) == (2 if when == "before" else 1), "what was mended before the kill stays so"
    verify(mine.storage, mine.id)
    assert [r.artifact_id for r in versions.store.list()] == sorted([mine.id, other.id])
    versions.store.sweep(older_than_s=0)
    assert {p.name for p in Path(mine.storage.uri).parent.iterdir()} <= {mine.id, other.id}


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


# Through the ledger and the command line


def _record(
    ledger: Ledger, stage: str, inputs: dict[str, ArtifactRecord], output: dict[str, ArtifactRecord], config: dict
) -> None:
    key = digest_json([stage, sorted(inputs)])
    claim = ledger.claim(key, "tester")
    attempt = ledger.begin_attempt(claim, stage=stage, work_dir="w", log_path="l")
    references = [InputRef(name=n, kind=a.kind, artifact_id=a.artifact_id, uri=a.uri) for n, a in inputs.items()]
    run = NewRun(
        stage=stage, stage_version=1, stage_key=key, key_record={}, config=config, code_digest="c" * 64, seed=0,
        environment={},
    )  # fmt: skip
    ledger.commit_run(claim, attempt, run, references, output, {})
    ledger.release(claim)


CONFIG: dict[str, object] = {
    "buckets": {"frames": [9, 17, 33], "sizes": [[64, 64], [64, 128]]}, "text_encoder": {"slots": 16},
    "reconstructions": 1, "shards": {"samples": 2},
}  # fmt: skip


def _output(directory: Path, kind: ArtifactKind) -> OutputResult:
    manifest = build_manifest(directory, kind, {})
    write_manifest(directory, manifest)
    return OutputResult(
        name=str(kind), kind=kind, artifact_id=manifest.artifact_id, staging=str(directory),
        size_bytes=manifest.size_bytes, files=len(manifest.files),
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home whose ledger has a dataset that the encode stage made; home and dataset id."""
    home = tmp_path_factory.mktemp("home")
    bench = support.make_bench(home)
    clips = bench.clips()
    directory, _ = bench.encode("encode", CONFIG, items="store/items")
    store = ArtifactStore(str(home / "store"))
    dataset = store.publish(_output(directory, ArtifactKind.DATASET))
    read = ArtifactRecord(
        artifact_id=clips.id, kind=clips.kind, uri=clips.storage.uri, size_bytes=clips.manifest.size_bytes, files=1
    )
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        _record(ledger, "curate", {}, {"clips": read}, {})
        _record(ledger, "encode", {"clips": read}, {"dataset": dataset}, CONFIG)
    return home, dataset.artifact_id


def _cli(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["m4v", "--home", str(home), "artifacts", "verify", *arguments])
    monkeypatch.setenv("M4V_HOME", str(home))
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_shards_are_rebuilt_from_the_item_store(
    encoded: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    home, dataset = encoded
    place = home / f"store/artifacts/dataset/{dataset[:2]}/{dataset}"
    assert _cli(home, monkeypatch, capsys, dataset)[0] == 0
    whole = support.tree_digest(place)
    first = _row(place, "video-0.mp4")
    _flip(place / "shards" / str(first["shard"]), int(str(first["latent_offset"])) + 400)
    gone = next(p for p in sorted((place / "shards").iterdir()) if p.name != first["shard"])
    gone.unlink()
    code, out, err = _cli(home, monkeypatch, capsys, dataset[:10])
    assert code == 20
    assert f"shards/{first['shard']} {first['sample_id']} latent: bytes differ from the index" in out
    assert f"shards/{gone.name}: is gone" in out
    assert "--repair" in err
    code, out, _ = _cli(home, monkeypatch, capsys, dataset[:10], "--repair")
    assert code == 0, out
    assert f"repaired shards/{gone.name} from encode's items" in out
    assert f"repaired shards/{first['shard']} from encode's items and its own whole members" in out
    assert support.tree_digest(place) == whole
    code, out, _ = _cli(home, monkeypatch, capsys, dataset, "--json")
    assert (code, json.loads(out)[0]["problems"], json.loads(out)[0]["problem"]) == (0, [], None)


def test_what_no_item_can_mend_is_told(
    encoded: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    home, dataset = encoded
    place = home / f"store/artifacts/dataset/{dataset[:2]}/{dataset}"
    kept = (place / "null_text.safetensors").read_bytes()
    (place / "null_text.safetensors").write_bytes(kept[:-1])
    code, out, err = _cli(home, monkeypatch, capsys, dataset, "--repair")
    (place / "null_text.safetensors").write_bytes(kept)
    assert code == 20
    assert "cannot repair null_text.safetensors: no artifact holds another copy" in out
    assert "run the recipe again" in err
    manifest = (place / "manifest.json").read_bytes()
    (place / "manifest.json").write_bytes(manifest[:40])
    assert _cli(home, monkeypatch, capsys, dataset)[0] == 20
    code, out, _ = _cli(home, monkeypatch, capsys, dataset, "--repair")
    assert (code, "repaired manifest.json from the files and the ledger" in out) == (0, True)
    assert (place / "manifest.json").read_bytes() == manifest
    code, _, err = _cli(home, monkeypatch, capsys, dataset, "--repair", "--quick")
    assert code == 10
    assert "exclude each other" in err
