"""The report stage: what it says, what it leaves out, and that a run may have only some of its parts."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixture import HOSTILE, RunFixture

from eval.records import SCORES, ScoreSet, read_record, write_record
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.asset_catalog import FILM_CREDIT
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.weights.config import WeightsConfig
from pipelines.web import report
from pipelines.web.facts import NodeFacts, RunFacts
from pipelines.web.sections import reward
from pipelines.web.sections.curation import asset_credits
from pipelines.web.sections.inputs import ReportInputs
from training.config import RewardConfig
from training.reward.held_out import held_out_levels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFixture:
    return RunFixture(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: RunFixture) -> str:
    return report.build(run.context())


class Balanced(HTMLParser):
    """Fails on an element that is closed out of order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [v for k in ("src", "href") if (v := found.get(k))]
        self.ids += [v for v in [found.get("id")] if v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]}"


def test_html_is_well_formed_and_self_contained(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    outside = [u for u in parser.links if not u.startswith(("data:", "#"))]
    assert outside == []
    assert all(u[1:] in parser.ids for u in parser.links if u.startswith("#"))
    assert "default-src 'none'" in page


def test_texts_from_outside_are_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_page_says_what_the_run_did(run: RunFixture, page: str) -> None:
    scores = json.loads(run.artifacts["scores"].path("scores.json").read_text())["metrics"]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert f"{scores['local.colour_follow']['mean']:.3f}" in text
    assert "18 of 30 candidates" in text
    assert "5 of 5 stages" in text
    assert "31.5 dB" in text  # mean of 28 … 35
    assert "motion_min −5" in text
    assert "3 of 90 frames" in text
    assert "row 7: seconds is &#39;abc&#39;" in page
    assert "Big Buck Bunny, (c) 2008 Blender Foundation" in text
    assert "EfficientNet-Lite2 trained on ImageNet" in text
    assert run.artifacts["checkpoint.57f"].id[:10] in text
    assert "config changed: steps 3 -&gt; 60" in page


def test_files_of_the_asset_catalogue_are_credited() -> None:
    assert asset_credits("asset:corpus/film", ["bbb.mp4"]) == (f"{FILM_CREDIT} (CC-BY-3.0)",)
    assert asset_credits("asset:corpus/film/", ["another.mp4"]) == ()
    assert asset_credits("s3://bucket/film", ["bbb.mp4"]) == ()


def test_imported_weights_stand_in_the_lineage_and_the_credits(run: RunFixture, tmp_path: Path) -> None:
    facts = run.facts()
    node = next(n for n in facts["nodes"] if n["node_id"] == "source.film")
    weights = WeightsConfig(name="dit", entry="pyramidflow-dit-768p")
    facts["nodes"].insert(0, {**node, "node_id": "weights.dit", "stage": "weights", "config": weights.canonical()})
    edge = {"from": "weights.dit", "to": "init", "input": "weights.dit", "artifact_id": "d" * 64, "kind": "weights"}
    facts["edges"].append(edge)
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts))
    context = run.context()
    context.request.attachments["facts"] = str(path)
    page = report.build(context)
    Balanced().feed(page)
    assert 'data-from="weights.dit" data-to="init"' in page
    assert 'id="stage-weights.dit"' in page
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "pyramidflow-dit-768p Apache-2.0 PyramidFlow miniflux transformer" in text
    assert "dddddddddd" in text


def test_what_the_reward_stage_changed_stands_beside_each_other(run: RunFixture, page: str, tmp_path: Path) -> None:
    assert '<section id="reward">' not in page
    artifacts = run.artifacts
    inputs = {"scores_before_reward": artifacts["scores_untrained"], "scores_after_reward": artifacts["scores"]}
    told = reward.gather(ReportInputs(inputs))
    assert told is not None
    (colour,) = (row for row in told.rows if row.name == "local.colour_follow")
    assert (told.comparable, told.prompts, colour.verdict) == (True, 6, "better")
    fewer = read_record(ScoreSet, inputs["scores_before_reward"], SCORES)
    fewer = fewer.model_copy(update={"per_video": tuple(v for v in fewer.per_video if v.prompt_index not in (1, 2))})
    write_record(tmp_path / SCORES, fewer)
    manifest = build_manifest(tmp_path, ArtifactKind.SCORES, {})
    write_manifest(tmp_path, manifest)
    short = Artifact(str(tmp_path), manifest.artifact_id, ArtifactKind.SCORES, tmp_path)
    told = reward.gather(ReportInputs({**inputs, "scores_before_reward": short}))
    assert told is not None
    assert told.prompts == 4, "the other two stand on one side alone"
    artifacts |= inputs
    try:
        changed = report.build(run.context())
    finally:
        for name in inputs:
            del artifacts[name]
    Balanced().feed(changed)
    section = changed.partition('<section id="reward">')[2].partition("</section>")[0]
    assert "on the same 6 prompts and seeds" in section
    assert f"{colour.gain:+.3f}".replace("-", "\u2212") in section


def test_clips_that_the_reward_stage_never_saw_stand_in_the_report(run: RunFixture, tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 0.5, "reward": 0.1} for step in range(4)]
    for row in rows[1::2]:
        row |= held_out_levels(["score_conse"], [[0.1], [0.2]] * 3, [[0.15], [0.26]] * 3)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = build_manifest(tmp_path, ArtifactKind.CHECKPOINT, {})
    write_manifest(tmp_path, manifest)
    checkpoint = Artifact(str(tmp_path), manifest.artifact_id, ArtifactKind.CHECKPOINT, tmp_path)
    config = RewardConfig(name="reward", steps=4, save_every=2).canonical()
    facts = RunFacts(nodes=(NodeFacts(node_id="reward", stage="reward", status="ran", config=config),))
    told = reward.gather(ReportInputs({"checkpoint.reward": checkpoint}), facts)
    assert told is not None
    assert (told.rows, told.watched, told.alarm) == ((), True, None)
    (score,) = told.held_out
    assert (score.clips, score.significant) == (6, True)
    finished = facts.nodes[0].model_copy(update={"metrics": {"watch_alarm": {"step": 6, "good": 4, "reasons": []}}})
    alarmed = reward.gather(
        ReportInputs({"checkpoint.reward": checkpoint}), facts.model_copy(update={"nodes": (finished,)})
    )
    assert alarmed is not None
    assert alarmed.alarm == "step 6"
    before = run.artifacts["checkpoint.reward"]
    run.artifacts["checkpoint.reward"] = checkpoint
    try:
        section = report.build(run.context(only=("checkpoint.reward",), facts=False))
    finally:
        run.artifacts["checkpoint.reward"] = before
    Balanced().feed(section)
    section = section.partition('<section id="reward">')[2].partition("</section>")[0]
    assert "Clips that the stage did not train on" in section
    assert '<span class="chip good">0.0550 better</span>' in section


def test_refused_gate_gives_its_reasons(tmp_path: Path) -> None:
    page = report.build(RunFixture(tmp_path, passed=False, prompts=3).context())
    assert "✗ Gate refused" in page
    assert "does not hold" in page


@pytest.mark.parametrize(
    "only",
    [
        (),
        ("clips",),
        ("samples",),
        ("samples", "scores"),
        ("samples_untrained", "scores_untrained"),
        ("checkpoint.t2i",),
        ("dataset",),
    ],
)
def test_a_run_may_have_only_some_parts(run: RunFixture, only: tuple[str, ...]) -> None:
    page = report.build(run.context(only=only, facts=False))
    Balanced().feed(page)
    assert "No gate in this run" in page
    assert ("This run generated no samples" in page) == (not any(n.startswith("samples") for n in only))
    assert "made without the ledger" in page


def test_limits_bound_the_page(run: RunFixture) -> None:
    small = report.build(run.context({"media_mib": 0.05}))
    assert len(small) < 400_000
    assert "left out to keep the page small" in small
    assert "files left out by the page&#39;s limit" in small or "files left out by the page's limit" in small
    few = report.build(run.context({"generated": 2, "reconstructions": 1, "rejected": 1, "kept": 0, "quarantined": 1}))
    assert few.count('class="card prompt"') == 2
    assert few.count("Reconstruction:") == 1
    assert "2 of 6 prompts are shown" in few
    assert "1 of 4 rows are shown" in few
    assert 'id="kept"' not in few


def test_same_inputs_same_bytes(run: RunFixture, page: str) -> None:
    assert report.build(run.context()) == page


def test_stage_writes_one_file(run: RunFixture) -> None:
    context = run.context()
    report.run(context)
    assert [p.name for p in context.output("report").iterdir()] == ["index.html"]
    assert context.summaries()["report"]["page"] == "index.html"


def test_wrong_config_and_broken_facts(run: RunFixture, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean generated"):
        report.build(run.context({"generatd": 3}))
    broken = run.context()
    path = tmp_path / "facts.json"
    path.write_text('{"nodes": [{"stage": "x"}]}')
    broken.request.attachments["facts"] = str(path)
    with pytest.raises(DataIntegrityError, match="facts of the run"):
        report.build(broken)
    path.write_text("{")
    with pytest.raises(DataIntegrityError, match="do not parse"):
        report.build(broken)
