"""A reward stage told by the checkpoints before and after it: page, verb and what they rest on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluated_home import GOOD
from fastapi.testclient import TestClient
from rewarded_home import CONFIG, CONSE, MOTION, RewardedHome

from m4v.core.errors import InputError
from m4v.scores.clip_config import HpsConfig
from m4v.scores.config import ConseConfig
from pipelines.cli.main import main
from pipelines.inspection.reward_effect import HELD_OUT, REWARD, listed, reward_effect, reward_run
from pipelines.ledger import Ledger
from pipelines.web.app import create_app
from pipelines.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("rewarded") / "home")


@pytest.fixture(scope="module")
def ledger(workspace: Workspace) -> Iterator[Ledger]:
    with Ledger.open(workspace.ledger_url) as found:
        yield found


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, ledger: Ledger) -> dict[str, str]:
    """Reward stages by what became of them."""
    home = RewardedHome(tmp_path_factory.mktemp("artifacts"), ledger)
    return {
        "unmeasured": home.rewarded(gain=None),
        "hacked": home.rewarded(drift=1.0),
        "good": home.rewarded(),
    }


def test_scores_of_both_sides_are_paired_and_the_roles_told(
    workspace: Workspace, ledger: Ledger, stages: dict[str, str]
) -> None:
    found = reward_effect(ledger, workspace.cache, reward_run(ledger, stages["good"]))
    assert found.pair is not None
    assert (found.pair.left.checkpoint, found.pair.right.checkpoint) == (found.before, found.after)
    changes = {row.metric.name: row.change for row in found.pair.rows}
    reward, fallen = changes[CONSE], changes[GOOD]
    assert reward is not None
    assert reward.gain == pytest.approx(0.1)
    assert reward.improvement
    assert fallen is not None
    assert fallen.regression
    assert changes[MOTION] is None
    assert found.monitors[MOTION].gain == pytest.approx(0.1), "after minus before"
    assert found.roles[CONSE] == REWARD
    words = {finding.words.partition(" +")[0].partition(" -")[0]: finding.good for finding in found.findings}
    assert words["reward: conse.alignment"] is True
    assert words["local.good"] is False
    assert words["the watch raised no alarm"] is True


def test_a_scorer_that_is_held_out_has_its_role(workspace: Workspace, ledger: Ledger, tmp_path: Path) -> None:
    watch = CONFIG.watch.model_copy(update={"held_out": (HpsConfig(weights="hps"), ConseConfig())})
    home = RewardedHome(tmp_path, ledger)
    home.count = 1000
    run = home.rewarded(config=CONFIG.model_copy(update={"watch": watch}))
    found = reward_effect(ledger, workspace.cache, reward_run(ledger, run))
    assert found.roles["score.hps"] == HELD_OUT
    assert found.roles[CONSE] == REWARD, "what is rewarded is not held out"


def test_the_watch_is_told_from_the_rows_and_the_recorded_limits(
    workspace: Workspace, ledger: Ledger, stages: dict[str, str]
) -> None:
    good = reward_effect(ledger, workspace.cache, reward_run(ledger, stages["good"]))
    assert good.alarm is None
    assert {v.name: v.departed for v in good.verdicts}["loss"] == ()
    hacked = reward_effect(ledger, workspace.cache, reward_run(ledger, stages["hacked"]))
    assert hacked.alarm is not None
    verdicts = {verdict.name: verdict for verdict in hacked.verdicts}
    assert verdicts["loss"].departed == (8, 12)
    assert verdicts["velocity_drift"].last == pytest.approx(0.11)
    assert verdicts["velocity_drift"].limit == 0.3
    assert any(f.good is False and "alarm at step 12" in f.words for f in hacked.findings)


def test_the_stage_s_own_score_of_clips_that_it_never_saw_is_told(
    workspace: Workspace, ledger: Ledger, stages: dict[str, str]
) -> None:
    found = reward_effect(ledger, workspace.cache, reward_run(ledger, stages["unmeasured"]))
    (score,) = found.held_out
    assert (score.name, score.before, score.clips) == ("score_conse", 0.1, 7)
    assert score.rise == pytest.approx(0.022), "of the last save"
    (told,) = (f for f in found.findings if f.words.startswith("held-out clips: score_conse +0.022"))
    assert told.good is True
    assert "(+0.011 to +0.033) over 7 clips: significantly better" in told.words


def test_one_side_alone_is_no_comparison(workspace: Workspace, ledger: Ledger, stages: dict[str, str]) -> None:
    found = reward_effect(ledger, workspace.cache, reward_run(ledger, stages["unmeasured"]))
    assert found.pair is None
    assert "set evaluation.before_reward" in found.findings[0].words


def test_a_stage_is_found_by_its_checkpoint_and_others_are_refused(ledger: Ledger, stages: dict[str, str]) -> None:
    run = reward_run(ledger, stages["good"])
    assert reward_run(ledger, run.output("checkpoint").artifact_id) == run
    assert {row.run_id for row in listed(ledger)} >= set(stages.values())
    (before,) = (port.artifact_id for port in run.inputs)
    with pytest.raises(InputError, match="no reward stage"):
        reward_run(ledger, before)


def test_the_verb_tells_the_same(
    workspace: Workspace, stages: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("M4V_HOME", str(workspace.home))

    def m4v(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["m4v", "evaluate", "reward", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    told = json.loads(m4v(stages["good"], "--json"))
    metrics = {row["name"]: row for row in told["scores"]["metrics"]}
    assert metrics[CONSE]["role"] == "reward"
    assert metrics[CONSE]["change"]["improvement"] is True
    assert metrics[MOTION]["monitor"]["gain"] == pytest.approx(0.1)
    assert told["watch"]["alarm"] is None
    (held_out,) = told["held_out_clips"]
    assert held_out["rise"] == pytest.approx(held_out["after"] - held_out["before"]) == pytest.approx(0.022)
    table = m4v(stages["hacked"])
    assert "+0.022 [0.011, 0.033]" in table
    assert "bad   the watch raised an alarm at step 12" in table
    rows = json.loads(m4v("--list", "--json"))
    assert {row["run_id"] for row in rows} >= set(stages.values())


def test_the_page_shows_both_sides(workspace: Workspace, stages: dict[str, str]) -> None:
    with TestClient(create_app(workspace)) as client:
        listing = client.get("/evaluation/rewards").text
        good, hacked, alone = (
            client.get(f"/evaluation/rewards/{stages[name]}").text for name in ("good", "hacked", "unmeasured")
        )
        assert client.get("/evaluation/rewards/0123abcd").status_code == 404
    assert all(f'href="/evaluation/rewards/{run}"' in listing for run in stages.values())
    assert good.count("<video") == 12, "six pairs"
    assert '<span class="chip good">better</span>' in good
    assert '<span class="chip">reward</span>' in good
    assert "the watch raised no alarm" in good
    assert good.count("<svg") >= 4, "curves"
    assert "Clips that it did not train on" in good
    assert "(0.0110 to 0.0330)" in good
    assert '<span class="chip bad">out of bounds</span>' in hacked
    assert "set evaluation.before_reward" in alone
    assert "<video" not in alone
