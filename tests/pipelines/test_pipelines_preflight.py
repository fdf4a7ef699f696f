"""Preflight of a plan: shipped recipes without their inputs, refusal, and correction by what a run measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m4v.core.errors import ConfigError, ExitClass
from m4v.kernels.selection import OWN_GLUE, OWN_SCAN
from pipelines.cli.main import build_app
from pipelines.graph import build_graph
from pipelines.ledger import Ledger, NewRun
from pipelines.lookup import Lookup
from pipelines.plan import Expectation, PlanStatus, make_plan
from pipelines.preflight import preflight, refuse
from pipelines.recipe import load_recipe
from pipelines.session import Session, launcher_of, open_session
from training.preflight import Estimate


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "home"


@pytest.mark.parametrize(("name", "stages"), [("m4v-768p", 6), ("paper-d1", 7)])
def test_a_recipe_without_its_inputs_is_planned_with_what_is_missing(home: Path, name: str, stages: int) -> None:
    session = open_session(name)
    made = session.plan(tolerant=True)
    by_id = {step.node_id: step for step in made.steps}
    openvid, vae = by_id["source.openvid"], by_id["weights.vae"]
    assert {openvid.status, vae.status} == {PlanStatus.MISSING}
    assert "--set sources.openvid.location=DIRECTORY" in openvid.reason
    assert "m4v weights check pyramidflow-vae" in vae.reason
    assert by_id["curate"].reason.startswith("cannot run before")
    assert made.counts()["blocked"] == len(made.steps) - sum(s.expectation is Expectation.RUN for s in made.steps)
    found = preflight(session.recipe, session.nodes, made, session.ledger)
    assert len(found) == stages
    refuse(found)
    assert all(each.estimate.gpu_hours and each.estimate.fits for each in found.values())
    with pytest.raises(ConfigError, match="source has no location"):
        session.plan()


def test_paper_d1_says_what_the_paper_says() -> None:
    recipe = load_recipe("paper-d1")
    stages = {t.name: t for t in recipe.train}
    profile = recipe.active_profile
    told = {
        name: (t.optimizer.lr, t.steps, profile.resources("train", f"train.{name}").ranks) for name, t in stages.items()
    }
    assert {k: v for k, v in told.items() if k != "t2i-attention"} == {
        "adapt": (1e-4, 20_000, 64), "57f": (1e-4, 40_000, 64), "121f": (1e-4, 60_000, 64),
        "768p": (5e-5, 20_000, 128), "quality": (5e-5, 30_000, 128),
    }  # fmt: skip
    assert recipe.reward is not None
    assert (recipe.reward.optimizer.lr, recipe.reward.steps, recipe.reward.reward.weight) == (1e-5, 10_000, 0.1)
    assert all(t.order.image_every == 8 for name, t in stages.items() if name[0].isdigit() or name == "quality")
    sources = {name: {s for e in t.order.mixture for s in e.sources} for name, t in stages.items()}
    assert "webvid" in sources["57f"] & sources["121f"]
    assert not {"webvid"} & (sources["768p"] | sources["quality"])
    nodes = {node.id: node for node in build_graph(recipe)}
    assert nodes["train.t2i-attention"].inputs["dataset"] == ("encode.384p", "dataset")
    assert nodes["train.768p"].inputs["dataset"] == ("encode", "dataset")
    assert nodes["train.adapt"].inputs["checkpoint"] == ("convert", "checkpoint")
    assert nodes["init"].config.model.mixer == "attention"  # type: ignore[attr-defined]
    assert nodes["convert"].config.model.mixer == "mm_dim"  # type: ignore[attr-defined]


def test_m4v_wan_says_what_the_paper_says(home: Path) -> None:
    session = open_session("m4v-wan")
    recipe = session.recipe
    told = {t.name: (t.optimizer.lr, t.steps, t.order.frames, t.order.columns, t.engine.zero_stage)
            for t in recipe.train}  # fmt: skip
    assert told == {"480p": (1e-4, 60_000, 81, (), 3), "720p": (5e-5, 35_000, 81, (), 3)}
    assert recipe.profiles["paper"].resources("train").ranks == 128
    made = session.plan(tolerant=True)
    assert "m4v weights check wan2.1-t2v-1.3b" in {s.node_id: s.reason for s in made.steps}["weights.wan"]
    found = preflight(recipe, session.nodes, made, session.ledger)
    refuse(found)
    # A video is a pack, and so are as many images; these bring more text: 22 of 624 x 624, 21 of 720 x 1280.
    assert {name: each.estimate.largest_pack_tokens for name, each in found.items()} == {
        "train.480p": 22 * (39 * 39 + 512), "train.720p": 21 * (45 * 80 + 512),
    }  # fmt: skip
    assert {round(each.estimate.parameters / 1e9, 2) for each in found.values()} == {1.7}


def test_plan_refuses_what_cannot_fit_with_code_10(home: Path) -> None:
    wrong = ["--set", "profiles.node.gpu=a100-40gb"]
    done = CliRunner().invoke(build_app(), ["plan", "m4v-768p", "--json", *wrong])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_class == ExitClass.CONFIG
    assert "engine.checkpointing: block" in str(done.exception.next_step)
    told = json.loads(done.stdout)["preflight"]["train.57f"]
    assert told["fits"] is False
    assert "does not fit a100-40gb" in told["refusal"]
    assert sum(told["memory"].values()) == told["memory_bytes"]
    assert told["parameters"] == sum(told["parts"].values())


def measured(
    session: Session, node_id: str, seconds: float, ranks: int, peak: int | None = None, **numerics: str
) -> None:
    """Record a run of a node that took so long a step."""
    node = next(n for n in session.nodes if n.id == node_id)
    ledger, key = session.ledger, f"{ranks:064d}"
    record = {"numerics": {"device": "cpu", "world_size": ranks, **numerics}}
    metrics = {"step_seconds_median": seconds, **({} if peak is None else {"gpu_peak_bytes": peak})}
    pipeline_run = ledger.begin_pipeline_run(session.recipe.name, {})
    claim = ledger.claim(key, "test")
    attempt = ledger.begin_attempt(
        claim, stage="train", work_dir="w", log_path="l", node_id=node_id, pipeline_run_id=pipeline_run
    )
    run = NewRun(
        stage="train", stage_version=1, stage_key=key, key_record=record, config=node.config.canonical(),
        code_digest="0" * 64, seed=0,
    )  # fmt: skip
    run_id = ledger.commit_run(claim, attempt, run, (), {}, metrics=metrics)
    ledger.record_node(pipeline_run, node_id, stage="train", how="ran", reason="test", run_id=run_id)


def test_the_next_estimate_is_corrected_by_what_a_run_measured(home: Path) -> None:
    session = open_session("micro")
    made = session.plan()
    before = preflight(session.recipe, session.nodes, made, session.ledger)["train.17f"].estimate
    assert before.step_seconds is None
    assert any("no time is told" in words for words in before.assumptions)
    measured(session, "train.17f", 0.25, 1)
    found = preflight(session.recipe, session.nodes, made, session.ledger)
    assert found["train.17f"].estimate.step_seconds == pytest.approx(0.25)
    assert any("measured in an earlier run" in words for words in found["train.17f"].estimate.assumptions)
    # A stage that never ran is judged by its sibling, in proportion to its own operations.
    other = found["train.33f"].estimate
    assert other.step_seconds == pytest.approx(0.25 * other.step_flops / before.step_flops)


def test_a_measured_run_on_gpus_wins_over_the_pace_of_other_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own kernels: it also corrects what is told of faster ones, in proportion."""
    session = open_session("m4v-768p")
    made = session.plan(tolerant=True)

    def told(kernels: str) -> tuple[Estimate, Estimate]:
        monkeypatch.setenv("M4V_KERNELS", kernels)
        found = preflight(session.recipe, session.nodes, made, session.ledger)
        return found["train.121f"].estimate, found["train.57f"].estimate

    (stock, other), (own, _) = told("mamba_ssm"), told("triton")
    assert (stock.kernels, own.kernels) == ("stock", "own")
    assert stock.step_seconds is not None
    assert own.step_seconds is not None
    assert own.step_seconds < 0.7 * stock.step_seconds
    measured(session, "train.121f", 20.0, 8, 50 << 30, device="cuda", kernels="mamba-ssm 2.3.2, causal-conv1d 1.7.0")
    (now, sibling), (faster, _) = told("mamba_ssm"), told("triton")
    assert now.step_seconds == pytest.approx(20.0)
    assert now.memory_bytes == pytest.approx(50 << 30)
    assert any("measured in an earlier run of this recipe" in words for words in now.assumptions)
    assert faster.step_seconds == pytest.approx(20.0 * own.step_seconds / stock.step_seconds)
    assert other.step_seconds is not None
    assert sibling.step_seconds == pytest.approx(20.0 * other.step_seconds / stock.step_seconds)


def test_a_slurm_profile_says_which_kernels_its_nodes_have(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_KERNELS", "mamba_ssm")
    libraries = "profiles.paper.slurm.kernels=mamba-ssm 2.3.2.post1, causal-conv1d 1.6.2.post1"
    for given, kind in (
        ((), "own"),
        ((f"profiles.paper.slurm.kernels={OWN_SCAN}, {OWN_GLUE}",), "own"),
        ((libraries,), "stock"),
    ):
        session = open_session("m4v-768p", ["profile=paper", *given])
        found = preflight(session.recipe, session.nodes, session.plan(tolerant=True), session.ledger)
        assert {each.estimate.kernels for each in found.values()} == {kind}


def test_a_checkpoint_from_elsewhere_has_no_estimate(home: Path) -> None:
    session = open_session("micro")
    recipe = session.recipe
    lookup = Lookup(Ledger.open(session.workspace.ledger_url), launcher_of(recipe.active_profile))
    init = [node for node in session.nodes if node.id == "init"]
    made = make_plan(recipe.name, init, lookup)
    assert preflight(recipe, init, made, session.ledger) == {}
