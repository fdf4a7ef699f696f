"""The stage contract: context, progress, drain, and the files a stage process leaves."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError, Drained, ExitClass
from m4v.core.stage import (
    ExitRecord,
    InputRef,
    OutputRef,
    Progress,
    ProgressReporter,
    StageContext,
    StageRequest,
    install_drain_handler,
    read_exits,
    write_exit,
    write_json,
)


class Config(FrozenModel):
    width: int


@pytest.fixture
def request_(tmp_path: Path) -> StageRequest:
    inputs = []
    for number in (0, 1, 2, 10):
        directory = tmp_path / f"in{number}"
        directory.mkdir()
        (directory / "f").write_text(str(number))
        manifest = build_manifest(directory, ArtifactKind.SOURCE, {})
        write_manifest(directory, manifest)
        inputs.append(
            InputRef(name=f"source.{number}", kind=manifest.kind, artifact_id=manifest.artifact_id, uri=str(directory))
        )
    return StageRequest(
        stage="curate", stage_version=1, function="a.b:run", config_model="a.c:Config", stage_key="k", attempt_id="a",
        config={"width": 64}, seed=5, inputs=tuple(inputs), outputs=(OutputRef(name="clips", kind=ArtifactKind.CLIPS),),
        store_uri=str(tmp_path / "store"), work_dir=str(tmp_path / "work"), state_uri=str(tmp_path / "state"),
        items_uri=str(tmp_path / "items"), locations={"films": str(tmp_path / "films")},
    )  # fmt: skip


@pytest.fixture
def context(request_: StageRequest) -> StageContext:
    return StageContext(request_)


def test_a_request_survives_its_file(request_: StageRequest, tmp_path: Path) -> None:
    write_json(tmp_path / "request.json", request_)
    assert StageRequest.model_validate_json((tmp_path / "request.json").read_bytes()) == request_


def test_a_context_hands_out_what_was_declared(context: StageContext, tmp_path: Path) -> None:
    assert context.config(Config) == Config(width=64)
    assert [a.path("f").read_text() for a in context.input_list("source")] == ["0", "1", "2", "10"]
    assert context.input("source.1").path("f").read_text() == "1"
    assert context.output("clips") == tmp_path / "work/staging/clips"
    assert context.output("clips").is_dir()
    assert context.scratch.is_dir()
    assert context.location("films").uri == str(tmp_path / "films")
    context.state.write_bytes("cursor", b"3")
    assert (tmp_path / "state/cursor").read_bytes() == b"3"
    context.items("decode", "d" * 64).write_bytes("x", b"")
    assert (tmp_path / "items/decode" / ("d" * 32) / "x").exists()
    for call, name in ((context.input, "nothing"), (context.output, "video"), (context.location, "tapes")):
        with pytest.raises(ConfigError, match=f"'{name}'.*in curate"):
            call(name)


def test_imported_weights_are_found_by_their_name(request_: StageRequest, tmp_path: Path) -> None:
    given = request_.inputs[1].model_copy(update={"name": "weights.vae"})
    context = StageContext(request_.model_copy(update={"inputs": (*request_.inputs, given)}))
    assert {name: artifact.id for name, artifact in context.weights().items()} == {"vae": given.artifact_id}
    assert context.weights_folders() == {"vae": tmp_path / "in1"}
    assert len(context.input_list("source")) == 4
    assert StageContext(request_).weights_folders() == {}


def test_a_wrong_config_names_the_stage(request_: StageRequest) -> None:
    context = StageContext(request_.model_copy(update={"config": {"widht": 64}}))
    with pytest.raises(ConfigError, match=r"unknown key widht.*in request of curate.*did you mean width"):
        context.config(Config)


def test_metrics_keep_what_json_cannot_say(context: StageContext) -> None:
    context.metrics({"loss": math.nan, "psnr": [math.inf, 30.5]})
    context.metrics({"clips": 3})
    assert context.collected_metrics() == {"loss": "NaN", "psnr": ["Infinity", 30.5], "clips": 3}
    context.summary("clips", {"kept": 2})
    context.summary("clips", {"dropped": 1})
    assert context.summaries() == {"clips": {"kept": 2, "dropped": 1}}


def test_a_drain_is_asked_for_by_signal_or_by_file(request_: StageRequest) -> None:
    context = StageContext(request_)
    context.check_drain()
    before = signal.getsignal(signal.SIGTERM)
    try:
        install_drain_handler(context)
        os.kill(os.getpid(), signal.SIGTERM)
        assert context.drain_requested
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(Drained, match="stage was drained: 'curate'"):
        context.check_drain()
    other = StageContext(request_)
    assert not other.drain_requested
    (other.work_dir / "drain").touch()
    assert other.drain_requested


def read(path: Path) -> Progress:
    return Progress.model_validate_json(path.read_bytes())


def test_progress_is_written_and_beats_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgressReporter, "HEARTBEAT_S", 0.05)
    reporter = ProgressReporter(tmp_path / "progress.json")
    try:
        first = read(tmp_path / "progress.json")
        assert (first.done, first.total, first.rate) == (0, None, None)
        reporter.update(10, 10, "clips", "writing")
        done = read(tmp_path / "progress.json")
        assert (done.done, done.total, done.unit, done.note) == (10, 10, "clips", "writing")
        until = time.monotonic() + 300
        while read(tmp_path / "progress.json").heartbeat_at <= done.heartbeat_at:
            assert time.monotonic() < until, "no heartbeat came"
            time.sleep(0.02)
        assert read(tmp_path / "progress.json").updated_at == done.updated_at
    finally:
        reporter.close()
    time.sleep(0.15)
    last = read(tmp_path / "progress.json").heartbeat_at
    time.sleep(0.15)
    assert read(tmp_path / "progress.json").heartbeat_at == last, "it stopped"


def test_what_was_done_before_is_not_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("m4v.core.stage.time.time", lambda: now[0])
    monkeypatch.setattr(ProgressReporter, "INTERVAL_S", 0.0)
    reporter = ProgressReporter(None)

    def at(seconds: float, done: float, unit: str = "steps") -> Progress:
        now[0] = 1000.0 + seconds
        reporter.update(done, 1000, unit)
        return reporter._state

    assert at(5, 900).rate is None, "900 steps were done by an earlier attempt"
    assert at(5.5, 910).rate is None, "too early to say"
    assert at(15, 920).rate == pytest.approx(2.0)
    assert at(15, 920).eta_s == pytest.approx(40.0)
    assert at(20, 10, "clips").rate is None, "another phase"
    assert at(30, 60, "clips").rate == pytest.approx(5.0)
    assert at(31, 0, "clips").rate is None, "it began again"


def test_each_rank_says_how_it_ended(tmp_path: Path) -> None:
    write_exit(tmp_path, ExitRecord(rank=1, exit_class=ExitClass.INFRASTRUCTURE, message="NCCL"))
    write_exit(tmp_path, ExitRecord(rank=0, exit_class=ExitClass.OK))
    assert [(e.rank, e.exit_class, e.message) for e in read_exits(tmp_path)] == [(0, 0, ""), (1, 30, "NCCL")]
    assert json.loads((tmp_path / "exit.1.json").read_bytes())["traceback"] == ""
    assert read_exits(tmp_path / "nothing") == []
