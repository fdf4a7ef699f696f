"""What a plan tells beside its stages: what is missing first, grouped; what to do, last; in all three forms alike."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from pipelines.cli.main import build_app
from pipelines.plan_view import view_of
from pipelines.session import open_session
from pipelines.web.app import create_app


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, folder in (("M4V_HOME", "home"), ("M4V_WEIGHTS", "weights"), ("M4V_VBENCH", "vbench")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    return tmp_path / "home"


def test_what_is_missing_is_told_once_first_and_what_to_do_last() -> None:
    shown = CliRunner().invoke(build_app("plan"), ["plan", "m4v-768p"]).stdout
    told = json.loads(CliRunner().invoke(build_app("plan"), ["plan", "m4v-768p", "--json"]).stdout)
    by_problem = {each["problem"]: each for each in told["missing"]}
    sources = by_problem["source has no location"]
    assert sources["stages"] == [f"source.{n}" for n in ("openvid", "opensora-plan", "webvid", "images", "generated")]
    assert sources["next_steps"][0] == "--set sources.openvid.location=DIRECTORY"
    (suite,) = (each for problem, each in by_problem.items() if "dimensions of VBench" in problem)
    assert suite["stages"] == ["vbench"]
    assert suite["next_steps"] == ["m4v evaluate setup core", "m4v evaluate setup legacy", "m4v evaluate run --check"]
    lines = shown.splitlines()
    assert lines[0] == "needed by\tmissing"
    assert lines[1] == f"{', '.join(sources['stages'])}\tsource has no location"
    assert [line.removeprefix("next: ") for line in lines[-len(told["next"]) :]] == told["next"]
    assert lines.index("stage\twhat\twhy\testimate\tGPU-hours\tsize") < lines.index(
        next(line for line in lines if line.startswith("stage\thow\tranks"))
    )
    assert "vitb16_pretrain" not in shown, "every file of a suite is told by its own check, not by a plan"
    step = next(step for step in told["steps"] if step["node_id"] == "source.openvid")
    assert step["reason"].startswith(step["problem"])
    assert step["reason"].endswith(f"Next: {step['next_step']}")


def test_the_page_has_the_same_words() -> None:
    session = open_session("m4v-768p")
    view = view_of(session.recipe, session.nodes, session.plan(tolerant=True), session.ledger)
    with TestClient(create_app(session.workspace), base_url="http://localhost") as client:
        page = unescape(client.get("/plan?recipe=m4v-768p").text)
    assert len(view.missing) > 5
    for each in view.missing:
        assert each.problem in page
        assert each.needed_by in page
        assert all(step in page for step in each.next_steps)
    assert page.index('id="missing"') < page.index('id="steps"') < page.index('id="preflight"')
    for found in view.training.values():
        assert all(words in page for words in found.estimate.assumptions)


def test_a_stage_that_cannot_fit_is_among_what_is_missing() -> None:
    session = open_session("m4v-768p", ["profiles.node.gpu=a100-40gb"])
    view = view_of(session.recipe, session.nodes, session.plan(tolerant=True), session.ledger)
    (refused,) = (each for each in view.missing if each.stages == ("train.241f",) and "does not fit" in each.problem)
    assert refused.next_steps[0].startswith("set engine.")


def test_a_plan_that_lacks_something_does_not_offer_to_run() -> None:
    session = open_session("m4v-768p")
    view = view_of(session.recipe, session.nodes, session.plan(tolerant=True), session.ledger, "m4v run m4v-768p")
    assert not [step for step in view.next_steps if step.startswith("m4v run")]
    (files,) = (each for each in view.missing if each.stages == ("weights.vae",))
    assert "causal_video_vae" in files.problem
    assert "Next:" not in files.problem


def test_a_plan_with_nothing_missing_says_how_to_run_it() -> None:
    session = open_session("micro")
    view = view_of(session.recipe, session.nodes, session.plan(), session.ledger)
    assert view.missing == view.next_steps == []
    for words in (["micro"], ["micro", "--set", "seed=3", "--until", "init"]):
        shown = CliRunner().invoke(build_app("plan"), ["plan", *words]).stdout
        assert shown.splitlines()[-1] == " ".join(["next: m4v run", *words])
    assert "needed by" not in shown
