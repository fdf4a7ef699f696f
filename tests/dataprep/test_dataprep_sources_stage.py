import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nasty
import pytest

from dataprep.config import SourceConfig
from dataprep.sources.listing import CAPTIONS, LISTING, REJECTED, SourceReader
from dataprep.stages.source import run
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError, Drained, InputError
from m4v.core.stage import OutputRef, StageContext, StageRequest
from m4v.core.storage import Storage


def request(work: Path, adapter: dict[str, object], location: Path | None, name: str = "mine") -> StageRequest:
    config = SourceConfig.model_validate({"name": name, "adapter": adapter})
    return StageRequest(
        stage="source", stage_version=1, function="dataprep.stages.source:run",
        config_model="dataprep.config:SourceConfig", stage_key="k", attempt_id="a", config=config.canonical(), seed=0,
        inputs=(), outputs=(OutputRef(name="source", kind=ArtifactKind.SOURCE),), store_uri=str(work / "store"),
        work_dir=str(work), state_uri=str(work / "state"), items_uri=str(work / "items"),
        locations={name: str(location)} if location else {},
    )  # fmt: skip


def publish(work: Path, adapter: dict[str, object], location: Path | None = None) -> Artifact:
    context = StageContext(request(work, adapter, location))
    run(context)
    context.progress.close()
    out = work / "staging" / "source"
    manifest = build_manifest(out, ArtifactKind.SOURCE, context.summaries()["source"])
    write_manifest(out, manifest)
    return Artifact(str(out), manifest.artifact_id, ArtifactKind.SOURCE, work / "cache")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path / "cache"))


SYNTHETIC = {"kind": "synthetic", "count": 4, "stills": 2, "frames": 9, "size": [32, 32]}


def test_folder_artifact_holds_files_captions_and_rejections(tmp_path: Path) -> None:
    folder = nasty.corpus(tmp_path / "clips")
    reader = SourceReader(
        publish(tmp_path / "work", {"kind": "folder", "licence": "CC0-1.0", "terms": "ask me"}, folder)
    )
    files = list(reader.files())
    assert [f.path for f in files] == [
        "audio.mp4", "corrupt.mp4", "good-0.mp4", "good-1.mp4", "text.mp4", "truncated.mp4", "wave.mp4",
    ]  # fmt: skip
    assert [c.text for f in files if f.path.startswith("good") for c in f.captions] == [
        "a red square moves to the right, take 0", "a red square moves to the right, take 1",
    ]  # fmt: skip
    assert {(r.path, r.reason) for r in reader.rejected()} == {
        ("empty.mp4", "empty"), ("uncaptioned.mp4", "missing_caption"), ("blank.mp4", "missing_caption"),
    }  # fmt: skip
    facts = reader.facts
    assert (facts.name, facts.kind, facts.media, facts.terms) == ("mine", "folder", "external", "ask me")
    assert (facts.counts["files"], facts.counts["rejected"], facts.counts["rejected_missing_caption"]) == (7, 3, 2)
    assert reader.media_path(files[2], Storage(str(folder)), tmp_path) == folder / "good-0.mp4"
    (folder / "good-0.mp4").unlink()
    with pytest.raises(InputError, match="listed file is gone"):
        reader.media_path(files[2], Storage(str(folder)), tmp_path)


def test_nothing_of_machine_or_moment_enters_the_artifact(tmp_path: Path) -> None:
    one, two = (nasty.corpus(tmp_path / n / "clips") for n in ("one", "other place"))
    for path in two.iterdir():
        os.utime(path, (1, 1))
    first = publish(tmp_path / "a", {"kind": "folder"}, one)
    second = publish(tmp_path / "b", {"kind": "folder"}, two)
    assert first.id == second.id
    assert str(tmp_path).encode() not in b"".join(Path(first.storage.uri, n).read_bytes() for n in first.names())


def test_synthetic_artifact_carries_its_media(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "a", SYNTHETIC)
    reader = SourceReader(artifact)
    files = list(reader.files())
    assert reader.facts.media == "inside"
    assert [f.media for f in files] == ["video"] * 4 + ["image"] * 2
    assert all(reader.media_path(f, None, tmp_path).stat().st_size == f.size_bytes for f in files)
    assert {f.path for f in files} | {LISTING, CAPTIONS, REJECTED, "source.json"} == set(artifact.names())
    assert {"shape", "colour", "background", "motion", "camera", "frames"} <= set(files[0].extra)
    assert publish(tmp_path / "b", SYNTHETIC).id == artifact.id


def test_kill_while_drawing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = publish(tmp_path / "whole", SYNTHETIC)
    killed = tmp_path / "killed"
    (killed / "request.json").parent.mkdir(parents=True)
    (killed / "request.json").write_text(request(killed, SYNTHETIC, None).model_dump_json())
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dataprep.sources import synthetic\n"
        "from dataprep.stages.source import run\n"
        "from m4v.core.stage import StageContext, StageRequest\n"
        "draw, drawn = synthetic._encode, []\n"
        "def dying(*a):\n"
        "    drawn.append(1)\n"
        "    if len(drawn) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return draw(*a)\n"
        "synthetic._encode = dying\n"
        "run(StageContext(StageRequest.model_validate_json(Path(sys.argv[1]).read_text())))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(killed / "request.json")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sum(p.is_file() for p in (killed / "items").rglob("*")) == 3
    assert publish(killed, SYNTHETIC).id == whole.id


def test_too_many_rejections_fail_the_stage(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.mp4").write_bytes(b"x")
        if i < 12:
            (folder / f"{i}.txt").write_text("x")
    with pytest.raises(DataIntegrityError, match=r"18 of 30 rows were rejected \(18 missing_caption\).*0.6"):
        publish(tmp_path / "a", {"kind": "folder"}, folder)
    publish(tmp_path / "b", {"kind": "folder", "max_rejected": 0.6}, folder)


def test_a_source_with_nothing_usable_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no usable file \(1 missing_caption\)"):
        publish(tmp_path / "work", {"kind": "folder"}, folder)
    with pytest.raises(InputError, match="nothing of its kind found"):
        publish(tmp_path / "work2", {"kind": "images"}, folder)


def test_missing_location_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no location given"):
        publish(tmp_path / "a", {"kind": "folder"})
    with pytest.raises(InputError, match="directory does not exist"):
        publish(tmp_path / "b", {"kind": "folder"}, tmp_path / "nowhere")


def test_drain_stops_between_files(tmp_path: Path) -> None:
    context = StageContext(request(tmp_path, SYNTHETIC, None))
    context.request_drain()
    with pytest.raises(Drained):
        run(context)
    context.progress.close()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"kind": "folder", "inclde": ["*"]}, "unknown key adapter.inclde.*did you mean include"),
        ({"kind": "folder", "frames": [9, 3]}, r"frames \[9, 3\] are not"),
        ({"kind": "floder"}, "floder.*'folder', 'images', 'openvid', 'webvid', .*'synthetic'"),
        ({"kind": "synthetic", "count": "many"}, "valid integer"),
    ],
)
def test_wrong_configs_are_one_line(adapter: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(SourceConfig, {"name": "x", "adapter": adapter}, "recipe")
    assert "\n" not in str(caught.value)


def test_stage_reports_what_it_did(tmp_path: Path) -> None:
    folder = nasty.corpus(tmp_path / "clips")
    context = StageContext(request(tmp_path, {"kind": "folder"}, folder))
    run(context)
    context.progress.close()
    assert context.collected_metrics() == {"digests_cached": 0, "digests_computed": 7}
    assert context.summaries()["source"]["files"] == 7
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["done"], progress["unit"]) == (10, "files")


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    nasty.good_clip(tmp_path / "clips" / "a.mp4")
    script = (
        "import sys\n"
        "from dataprep.config import SourceConfig\n"
        "from dataprep.sources import probe\n"
        "for adapter in ({'kind': 'folder'}, {'kind': 'synthetic'}):\n"
        "    probe(SourceConfig.model_validate({'name': 'x', 'adapter': adapter}), {'x': sys.argv[1]})\n"
        "print(sorted({'torch', 'transformers', 'ray', 'cv2'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "clips")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
